"""The same command gives the same bits, whichever backend is the fastest today; killed smsr searches do too."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from literal_sparse import Case, one_thread, problem  # noqa: F401
from small_pictures import make_folder, scene, write
from sparsemask.backends import auto
from sparsemask.cli import upscale
from sparsemask.engine.loop import Fit
from sparsemask.masks.spatial import load_masks
from sparsemask.ops import dispatch
from sparsemask.prune import prune as prune_prune
from sparsemask.retrain import eval as retrain_eval
from sparsemask.search import run as search_run
from sparsemask.sparse import repeatable
from sparsemask.weights import load_weights
from tiny import ROOT, borrow_kernels, environment

pytestmark = pytest.mark.usefixtures("one_thread")

# 24 channels: kernels of 16 columns end in a panel of 8 there.
FLAGS = [
    "--search", "--space", "smsr", "--hr_path", "data", "--n_feats", "24", "--n_modules", "2", "--patch_size", "8",
    "--batch_size", "2", "--test_every", "4", "--n_worker", "1", "--ext", "img", "--checkpoint_interval", "3",
    "--eval_interval", "2", "--log_interval", "1", "--lr", "0.01", "--keep", "0.5", "--eval_limit", "2", "--name", "a",
]  # fmt: skip


@pytest.fixture(scope="module")
def searched(tmp_path_factory) -> Path:
    """A folder with pictures and a finished search, runs/a; not to be touched."""
    folder = tmp_path_factory.mktemp("searched")
    make_folder(folder / "data", 4, (32, 40))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("SPARSEMASK_HOME", str(borrow_kernels(folder / "home")))
        assert search_run.main([*FLAGS, "--max_iter", "3"]) == 0
    write(folder / "small.png", scene(9, (24, 30)))
    return folder


@pytest.fixture
def place(searched, monkeypatch) -> Path:
    """It as working directory; the choices of earlier tests are forgotten."""
    monkeypatch.chdir(searched)
    monkeypatch.setenv("SPARSEMASK_HOME", str(searched / "home"))
    auto.BACKEND.forget()
    yield searched
    auto.BACKEND.forget()


def case():
    return problem(Case(c_in=24, c_out=24))


# The rule


def test_nothing_is_raced_inside_and_the_bits_repeat():
    given = case()
    kernels = dispatch.find("native").why_not(torch.device("cpu"), torch.float32) is None
    wanted = given.run("native" if kernels else "reference")
    auto.BACKEND.forget()
    with repeatable():
        found = [given.run("auto") for _ in range(6)]
        assert not auto.BACKEND._seen
    assert all(torch.equal(one, wanted) for one in found)
    given.run("auto")
    assert len(auto.BACKEND._seen) == 1  # outside it measures again


def test_it_holds_until_the_outermost_ends_whatever_happens():
    assert not dispatch.repeating()
    with pytest.raises(RuntimeError), repeatable():
        with repeatable():
            pass
        assert dispatch.repeating()
        raise RuntimeError
    assert not dispatch.repeating()


def test_types_that_the_kernels_do_not_know_are_computed_by_the_reference():
    given = case()
    x = given.x.double()
    with repeatable():
        found = given.run("auto", x=x, weight=given.weight.double(), bias=given.bias.double())
    assert torch.equal(found, given.run("reference", x=x, weight=given.weight.double(), bias=given.bias.double()))


def test_who_names_a_backend_gets_it(monkeypatch):
    given = case()
    with repeatable():
        assert torch.equal(given.run("gather"), given.run("gather"))
        monkeypatch.setattr(dispatch.find("gather"), "conv", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            given.run("gather")


# The commands


def test_training_races_nobody(place, tmp_path, monkeypatch):
    plain, inside = Fit.run_all, [False]

    def run_all(self, title):
        inside[0] = True
        try:
            return plain(self, title)
        finally:
            inside[0] = False

    class Race(auto._Race):
        def __init__(self, names):
            assert not inside[0], "a race while training"
            super().__init__(names)

    monkeypatch.setattr(Fit, "run_all", run_all)
    monkeypatch.setattr(auto, "_Race", Race)
    assert search_run.main([*FLAGS, "--max_iter", "2", "--exp_path", str(tmp_path)]) == 0
    assert "val_psnr" in (tmp_path / "a" / "metrics.jsonl").read_text()


def untimed(value):
    """The same without times, which are of the day."""
    if isinstance(value, dict):
        return {k: untimed(v) for k, v in value.items() if k not in ("ms", "dense_ms", "gain", "milliseconds")}
    return [untimed(one) for one in value] if isinstance(value, list) else value


def results(place: Path, tmp_path: Path, monkeypatch, winner: str) -> dict:
    """What commands write where every race is won by `winner`."""
    auto.BACKEND.forget()
    out = tmp_path / winner
    out.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(auto.Auto, "_near", lambda self, x, work: [winner])
        assert retrain_eval.main(["--run", "runs/a", "--rounds", "1"]) == 0
        assert prune_prune.main(["--run", "runs/a", "--out", str(out / "m.npz")]) == 0
        assert upscale.main(["small.png", str(out / "large.png"), "--weights", "runs/a/checkpoints/last.pt"]) == 0
    info = json.loads(Path("runs/a/run.json").read_text())["eval"]
    return {
        "eval": untimed(info),
        "prune": json.loads((out / "m.json").read_text()),
        "masks": {k: v.tolist() for k, v in load_masks(out / "m.npz").channels.items()},
        "upscale": (out / "large.png").read_bytes(),
    }


def test_results_are_the_same_whoever_is_the_fastest(place, tmp_path, monkeypatch):
    a, b = (results(place, tmp_path, monkeypatch, winner) for winner in ("reference", "gather"))
    assert "psnr" in a["eval"]
    assert a == b


# Killed searches


def rows(folder: Path) -> list[str]:
    try:
        return (folder / "runs/a/metrics.jsonl").read_text().splitlines()
    except OSError:
        return []


@pytest.mark.slow
def test_a_killed_smsr_search_ends_in_the_same_bits(tmp_path):
    steps, moments = 12, (2, 5, 9)
    argv = [sys.executable, str(ROOT / "search/run.py"), *FLAGS, "--max_iter", str(steps), "--resume"]
    for name in ("alone", "killed"):
        make_folder(tmp_path / name / "data", 4, (32, 40))
    for moment in moments:
        folder = tmp_path / "killed"
        child = subprocess.Popen(
            argv, cwd=folder, env=environment(folder / "home"), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        deadline = time.monotonic() + 240
        while len(rows(folder)) < moment and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        child.kill()
        error = child.communicate()[1].decode()
        assert child.returncode == -signal.SIGKILL and len(rows(folder)) < steps, error
    for name in ("alone", "killed"):
        done = subprocess.run(
            argv, cwd=tmp_path / name, env=environment(tmp_path / name / "home"), capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
    assert "after step" in done.stdout  # the killed one did go on
    assert rows(tmp_path / "alone") == rows(tmp_path / "killed") and len(rows(tmp_path / "alone")) == steps
    for which in ("last", "best"):
        a, b = (load_weights(tmp_path / name / f"runs/a/checkpoints/{which}.pt") for name in ("alone", "killed"))
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    kept = [tmp_path / name / "runs/a/checkpoints/best.pt" for name in ("alone", "killed")]
    a, b = (torch.load(path, weights_only=True)["best"] for path in kept)
    assert a == b and np.isfinite(a["value"])
