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

from literal_sparse import one_thread  # noqa: F401
from sparsemask.search import run as search_run
from tiny import MASKS, ROOT, SMALL, borrow_kernels, data_flags, environment, fails, make_data

pytestmark = pytest.mark.usefixtures("one_thread", "no_images")  # a thread as in the processes that are killed


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def search_flags(data: Path, cwd: Path, steps: int, more: tuple[str, ...] = ()) -> list[str]:
    return [
        "--search", *data_flags(data), *SMALL, *MASKS, "--n_worker", "2", "--max_iter", str(steps),
        "--exp_path", str(cwd / "runs"), "--name", "a", "--resume", *more,
    ]  # fmt: skip


def complete(flags: list[str], cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run (or resume) a search to its end, in this process."""
    monkeypatch.chdir(cwd)
    monkeypatch.setenv("SPARSEMASK_HOME", str(borrow_kernels(cwd / "home")))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    assert search_run.main(flags) == 0


def final(folder: Path) -> dict:
    return torch.load(folder / "runs" / "a" / "checkpoints" / "last.pt", weights_only=True)


def same(a: dict, b: dict) -> list[str]:
    return [k for k in a["model"] if not torch.equal(a["model"][k], b["model"][k])]


def logged(folder: Path) -> int:
    """The last step in a run's metrics, 0 without any."""
    file = folder / "runs" / "a" / "metrics.jsonl"
    try:
        return json.loads(file.read_text().splitlines()[-1])["step"]
    except (OSError, IndexError, ValueError):  # not there yet, empty, or the last line half written
        return 0


def kill_after(folder: Path, flags: list[str], steps: int) -> int:
    """Start (or resume) a run and SIGKILL it once it has logged so many more steps; the step it had logged."""
    before = logged(folder)
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "search/run.py"), *flags],
        cwd=folder, env=environment(folder / "home"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    seen_start = False  # resuming cuts the metrics back to the checkpoint first
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and child.poll() is None:
        now = logged(folder)
        seen_start = seen_start or now < before or before == 0
        if now >= before + steps or (seen_start and now >= steps + before - 3):
            break
        time.sleep(0.005)
    assert child.poll() is None, child.stderr.read()  # it was at work: neither finished nor failed
    child.kill()
    child.communicate()
    return logged(folder)


@pytest.mark.parametrize(
    ("kills", "more"),
    [
        pytest.param(5, (), id="sgd, few"),
        pytest.param(20, (), id="sgd", marks=pytest.mark.slow),
        pytest.param(4, ("--optimizer", "adamw", "--accumulate", "2"), id="adamw, in parts", marks=pytest.mark.slow),
        pytest.param(
            4, ("--ema", "0.9", "--schedule", "cosine", "--warmup", "5"), id="averaged, cosine", marks=pytest.mark.slow
        ),
    ],
)
def test_sigkill_at_random_moments_changes_nothing(data, tmp_path, monkeypatch, kills, more):
    rng, steps = random.Random(7), 4 * kills + 10
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    for folder in (alone, killed):
        folder.mkdir()
    complete(search_flags(data, alone, steps, more), alone, monkeypatch)
    for _ in range(kills):
        assert kill_after(killed, search_flags(data, killed, steps, more), rng.randint(1, 4)) < steps
    complete(search_flags(data, killed, steps, more), killed, monkeypatch)
    a, b = final(alone), final(killed)
    assert a["step"] == b["step"] == steps
    assert same(a, b) == []
    for name, value in a.get("average", {}).get("trained", {}).items():
        assert torch.equal(value, b["average"]["trained"][name])
    # The masks did learn, or equal ones would prove little.
    assert any((v != 1).any() for k, v in a["model"].items() if k.endswith("_weight_"))
    for one, other in zip(a["optimizer"], b["optimizer"], strict=True):
        assert one["param_groups"] == other["param_groups"]
        for k, state in one["state"].items():
            assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(other["state"][k][n])) for n, v in state.items())
    # The metrics read as if nothing had happened, too.
    rows = [(f / "runs" / "a" / "metrics.jsonl").read_text() for f in (alone, killed)]
    assert rows[0] == rows[1]


def test_rates_after_a_resume_are_the_logged_ones(data, tmp_path, monkeypatch):
    # Loading an optimizer's state replaces its groups: the schedule must write into the new ones.
    from sparsemask.engine.loop import Fit

    monkeypatch.chdir(tmp_path)
    used = []

    def step(self, parts, plain=Fit.train_step):
        row = plain(self, parts)
        used.append((row["lr"], self.optimizers[0].param_groups[0]["lr"]))
        if self.step == 4 and len(used) == 4:
            raise RuntimeError("as if killed")
        return row

    monkeypatch.setattr(Fit, "train_step", step)
    flags = [*search_flags(data, tmp_path, 9), "--n_worker", "0"]
    with pytest.raises(RuntimeError):
        search_run.main(flags)
    assert search_run.main(flags) == 0
    assert len(used) == 4 + 6  # the checkpoint at step 3, then steps 4 to 9
    assert all(logged_rate == real for logged_rate, real in used)
    assert len({rate for rate, _ in used}) == 9


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


def test_resuming_keeps_the_runs_own_configuration(data, tmp_path, monkeypatch, capfd):
    flags = search_flags(data, tmp_path, 3)
    complete(flags, tmp_path, monkeypatch)
    capfd.readouterr()
    complete([*flags, "--lr", "0.7"], tmp_path, monkeypatch)
    assert "not by --lr" in capfd.readouterr().out
    assert final(tmp_path)["config"]["lr"] == 0.01


def test_one_run_is_held_by_one_process(data, tmp_path, monkeypatch, capfd):
    flags = search_flags(data, tmp_path, 4000)
    child = subprocess.Popen(
        [sys.executable, str(ROOT / "search/run.py"), *flags],
        cwd=tmp_path, env=environment(tmp_path / "home"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not (tmp_path / "runs" / "a" / "config.yaml").exists():
            time.sleep(0.05)
        monkeypatch.chdir(tmp_path)
        fails(capfd, search_run.main, flags, ["another process is at work"])
    finally:
        child.kill()
        child.wait()
