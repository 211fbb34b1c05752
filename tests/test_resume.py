"""A run killed anywhere and resumed ends in the same weights, bit for bit."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tiny import ROOT, SMALL, data_flags, environment, make_data, verb


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def search_flags(data: Path, cwd: Path, steps: int) -> list[str]:
    return [
        "--search", *data_flags(data), *SMALL, "--n_worker", "2", "--max_iter", str(steps),
        "--exp_path", str(cwd / "runs"), "--name", "a", "--resume",
    ]  # fmt: skip


def final(folder: Path) -> dict:
    return torch.load(folder / "runs" / "a" / "checkpoints" / "last.pt", weights_only=True)


def same(a: dict, b: dict) -> list[str]:
    return [k for k in a["model"] if not torch.equal(a["model"][k], b["model"][k])]


@pytest.mark.slow
def test_sigkill_at_twenty_random_moments_changes_nothing(data, tmp_path):
    steps, kills = 40, 20
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    for folder in (alone, killed):
        folder.mkdir()
    began = time.monotonic()
    assert verb("search/run.py", search_flags(data, alone, steps), alone).returncode == 0
    whole = time.monotonic() - began
    rng, survived = random.Random(7), 0
    for _ in range(kills):
        child = subprocess.Popen(
            [sys.executable, str(ROOT / "search/run.py"), *search_flags(data, killed, steps)],
            cwd=killed, env=environment(killed / "home"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            child.wait(timeout=rng.uniform(0.3, 0.9) * whole)
            survived += 1
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGKILL)
            child.wait()
    assert survived < kills  # the kills did hit it at work
    done = verb("search/run.py", search_flags(data, killed, steps), killed)
    assert done.returncode == 0, done.stderr
    a, b = final(alone), final(killed)
    assert a["step"] == b["step"] == steps
    assert same(a, b) == []
    for one, other in zip(a["optimizer"], b["optimizer"], strict=True):
        for k, v in one["state"].items():
            assert torch.equal(v["momentum_buffer"], other["state"][k]["momentum_buffer"])
    # The metrics read as if nothing had happened, too.
    rows = [(f / "runs" / "a" / "metrics.jsonl").read_text() for f in (alone, killed)]
    assert rows[0] == rows[1]


def test_ctrl_c_saves_says_so_and_exits_130(data, tmp_path):
    flags = search_flags(data, tmp_path, 4000)
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "search/run.py"), *flags],
        cwd=tmp_path, env=environment(tmp_path / "home"), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = tmp_path / "runs" / "a" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (metrics.exists() and metrics.read_text().count("\n") >= 4):
        time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=120)
    assert child.returncode == 130
    assert "Traceback" not in error
    assert "--resume" in error
    # The step that was running is in the checkpoint: nothing was lost.
    last = json.loads(metrics.read_text().splitlines()[-1])["step"]
    assert final(tmp_path)["step"] == last


def test_resuming_keeps_the_runs_own_configuration(data, tmp_path):
    flags = search_flags(data, tmp_path, 3)
    assert verb("search/run.py", flags, tmp_path).returncode == 0
    again = verb("search/run.py", [*flags, "--lr", "0.7"], tmp_path)
    assert again.returncode == 0, again.stderr
    assert "not by --lr" in again.stdout
    assert final(tmp_path)["config"]["lr"] == 0.01


def test_one_run_is_held_by_one_process(data, tmp_path):
    flags = search_flags(data, tmp_path, 4000)
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "search/run.py"), *flags],
        cwd=tmp_path, env=environment(tmp_path / "home"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (tmp_path / "runs" / "a" / "config.yaml").exists():
            time.sleep(0.05)
        second = verb("search/run.py", flags, tmp_path)
    finally:
        child.kill()
        child.wait()
    assert second.returncode == 2
    assert "another process is at work" in second.stderr
