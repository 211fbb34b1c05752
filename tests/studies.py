"""Studies small enough for tests, and looking at them while they run."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import optuna

from sparsemask.search.studies.plan import Plan
from tiny import ROOT, SMALL, data_flags, environment, interruptible

FEW = ["--max_iter", "3", "--retrain_iter", "2", "--hopeless", "0"]


def flags(data: Path, cwd: Path, name: str = "s", *more: str) -> list[str]:
    return ["--study", name, *data_flags(data), *SMALL, *FEW, "--exp_path", str(cwd / "runs"), *more]


def start(argv: list[str], cwd: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "search/study.py"), *argv],
        cwd=cwd, env=environment(cwd / "home"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=interruptible,
    )  # fmt: skip


def wait_for(condition, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


def children(process: subprocess.Popen) -> list[int]:
    found = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return sorted(map(int, found))


def trials(folder: Path) -> list[optuna.trial.FrozenTrial]:
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(folder / "study.journal")))
    return optuna.load_study(study_name=folder.name, storage=storage).trials


def made_plan(folder: Path, **more) -> Plan:
    ranges = {"sparse": {"low": 0.001, "high": 0.1, "log": True}}
    values = dict(study="s", folder=str(folder), storage=None, objectives=["miou", "multiply_adds"], ranges=ranges)
    values |= dict(flags={"search": {"space": "connectivity"}}, trials=12, identity={"ranges": ranges})
    return Plan(**{**values, **more})
