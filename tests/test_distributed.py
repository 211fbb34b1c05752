"""Two processes by torchrun reach the loss curve of one with the same global batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from literal_sparse import one_thread  # noqa: F401
from sparsemask.search import run as search_run
from tiny import MASKS, ROOT, SMALL, borrow_kernels, data_flags, environment, make_data

pytestmark = pytest.mark.usefixtures("one_thread", "no_images")


def losses(folder: Path) -> list[float]:
    rows = (folder / "runs" / "a" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["loss"] for row in rows]


@pytest.mark.parametrize(
    ("steps", "processes"), [(6, 1), pytest.param(20, 2, marks=pytest.mark.slow)], ids=["in parts", "by torchrun"]
)
def test_two_processes_equal_one(tmp_path, monkeypatch, steps, processes):
    data = make_data(tmp_path / "data")
    curves = {}
    runs = [("one", None, []), ("parts", None, ["--accumulate", "2"]), ("two", "torchrun", [])]
    for name, launch, more in runs[: processes + 1]:
        folder = tmp_path / name
        folder.mkdir()
        flags = [
            "--search", *data_flags(data), *SMALL, *MASKS, "--freeze_bn", "--max_iter", str(steps),
            "--eval_interval", str(steps), "--gpu", "-1", "--exp_path", str(folder / "runs"), "--name", "a",
            "--lr", "0.001", "--mask_lr_mult", "500", *more,
        ]  # fmt: skip
        if launch:
            done = subprocess.run(
                [
                    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
                    str(ROOT / "search/run.py"), *flags,
                ],
                cwd=folder, env=environment(folder / "home"), capture_output=True, text=True, timeout=600,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr[-3000:]
        else:
            monkeypatch.chdir(folder)
            monkeypatch.setenv("SPARSEMASK_HOME", str(borrow_kernels(folder / "home")))
            monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
            assert search_run.main(flags) == 0
        curves[name] = losses(folder)
    assert len(curves["one"]) == steps
    assert curves["one"][-1] < curves["one"][0]  # it does learn: equal curves of nothing would prove nothing
    # The noise, the crops and the averaging over all ranks' valid pixels must agree for this to hold.
    for name in [*curves][1:]:
        assert curves[name] == pytest.approx(curves["one"], rel=1e-5), name
