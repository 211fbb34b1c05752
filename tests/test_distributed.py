"""Two processes by torchrun reach the loss curve of one with the same global batch; one that is lost ends the other."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from bench.two_nodes import why_not
from literal_sparse import one_thread  # noqa: F401
from sparsemask.engine import distributed
from sparsemask.errors import UseError
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


LOST = """
import os, signal, sys, torch
from sparsemask.engine import distributed
from sparsemask.errors import command

@command
def main(argv):
    rank, _, _ = distributed.start()
    distributed.total(torch.ones(1))
    if rank:
        os.kill(os.getpid(), signal.SIGKILL)
    WORK
    print("not reached")

status = main([])
# What is left of the group would end with the interpreter, whose threads then may abort the process.
sys.exit(3 if torch.distributed.is_initialized() else status)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "work", ["distributed.total(torch.ones(1))", "distributed.stop()", "distributed.from_first('a')"]
)
def test_a_lost_process_ends_the_others_in_one_line(tmp_path, work):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", LOST.replace("WORK", work)], cwd=ROOT, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, env=environment(tmp_path / "home", RANK=str(rank), **where),
        )
        for rank in (0, 1)
    ]  # fmt: skip
    (out, error), _ = (process.communicate(timeout=240) for process in processes)
    assert [process.returncode for process in processes] == [2, -signal.SIGKILL], error
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "cannot reach another process" in lines[0] and "--resume" in lines[0]
    assert "Traceback" not in error and "not reached" not in out


@pytest.mark.parametrize(
    ("raised", "lost"),
    [
        (RuntimeError("[/x/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.2]:48268. More."), True),
        (dist.DistNetworkError("The client socket has timed out after 600000ms"), True),
        (RuntimeError("shape '[2]' is invalid for input of size 3"), False),
    ],
    ids=["gloo", "the store", "a fault of ours"],
)
def test_only_what_the_network_did_is_an_error_of_use(monkeypatch, raised, lost):
    def all_reduce(_: torch.Tensor) -> None:
        raise raised

    monkeypatch.setattr(dist, "all_reduce", all_reduce)
    monkeypatch.setattr(distributed, "world", lambda: 2)
    with pytest.raises(UseError if lost else RuntimeError) as caught:
        distributed.total(torch.ones(1))
    assert not lost or ("pair.cc" not in str(caught.value) and "\n" not in str(caught.value))


@pytest.mark.slow
def test_two_nodes_equal_one_and_a_killed_one_ends_the_other(tmp_path):
    if reason := why_not():
        pytest.skip(f"two nodes cannot be played here: {reason}")
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench/two_nodes.py"), "--steps", "6", "--kill", "3"],
        cwd=tmp_path, env=environment(tmp_path / "home"), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
