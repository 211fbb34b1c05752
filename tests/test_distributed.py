"""Two processes by torchrun reach the loss curve of one with the same global batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tiny import MASKS, ROOT, SMALL, data_flags, environment, make_data, verb


def losses(folder: Path) -> list[float]:
    rows = (folder / "runs" / "a" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["loss"] for row in rows]


@pytest.mark.slow
def test_two_processes_equal_one_over_twenty_steps(tmp_path):
    data = make_data(tmp_path / "data")
    curves = {}
    for name, launch, more in (
        ("one", None, []),
        ("parts", None, ["--accumulate", "2"]),
        ("two", "torchrun", []),
    ):
        folder = tmp_path / name
        folder.mkdir()
        flags = [
            "--search", *data_flags(data), *SMALL, *MASKS, "--freeze_bn", "--max_iter", "20", "--eval_interval", "20",
            "--gpu", "-1", "--exp_path", str(folder / "runs"), "--name", "a",
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
        else:
            done = verb("search/run.py", flags, folder)
        assert done.returncode == 0, done.stderr[-3000:]
        curves[name] = losses(folder)
    assert len(curves["one"]) == 20
    assert curves["one"][-1] < curves["one"][0]  # it does learn: equal curves of nothing would prove nothing
    # The noise, the crops and the averaging over all ranks' valid pixels must agree for this to hold.
    assert curves["two"] == pytest.approx(curves["one"], rel=1e-5)
    assert curves["parts"] == pytest.approx(curves["one"], rel=1e-5)
