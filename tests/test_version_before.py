"""Runs, masks and checkpoints that an older version made: every verb of today reads them, with the results of then."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import pyramid  # noqa: F401  a small backbone that runs may name
import small_hinge  # noqa: F401  a small network that runs may name
from literal_sparse import one_thread  # noqa: F401
from small_classes import write_npz
from small_clouds import CROPS, rooms
from small_pictures import make_folder
from sparsemask.devices import processor
from sparsemask.prune import prune as prune_prune
from sparsemask.retrain import eval as retrain_eval
from sparsemask.retrain import export as retrain_export
from sparsemask.retrain import specialize as retrain_specialize
from sparsemask.retrain import train as retrain_train
from sparsemask.search import run as search_run
from sparsemask.sparse import backend
from sparsemask.weights import load_weights
from tiny import SMALL, borrow_kernels, data_flags, fails, make_data

pytestmark = pytest.mark.usefixtures("one_thread", "no_images")

KEPT = Path(__file__).resolve().parent / "golden" / "version_before"
DENSE = lambda folder: make_data(folder, n=8)
DATA: dict[str, Callable[[Path], object]] = {
    "connectivity": DENSE,
    "smsr": lambda folder: make_folder(folder, 4, (32, 40)),
    "smpointseg": rooms,
    "hinge": write_npz,
    "specialized": DENSE,
    "slim": DENSE,
}
# The flags of `prune` with which the mask that is kept was made.
PRUNE = {
    "connectivity": ["--thres", "0.5"],
    "smsr": [],
    "smpointseg": ["--task", "s3dis", "--data_root", "data", *CROPS],
    "hinge": ["--target", "0.5"],
    "slim": ["--target", "0.5"],
}
QUICK = ("connectivity", "smsr")
TRAINED = ["connectivity", "smsr", "smpointseg", "hinge", "specialized"]


@pytest.fixture
def family(request, tmp_path, monkeypatch) -> str:
    """A family's name; its kept files and their data are in the working directory."""
    name = request.param
    folder = tmp_path / name
    shutil.copytree(KEPT / name, folder)
    DATA[name](folder / "data")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SPARSEMASK_HOME", str(borrow_kernels(tmp_path / "home")))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    with backend("reference"):
        yield name


def families(names: list[str]) -> pytest.MarkDecorator:
    """Run a test for these families; quick test sets take two."""
    marked = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]
    return pytest.mark.parametrize("family", marked, indirect=True)


def same_machine() -> bool:
    """Whether bits may be compared with those of the machine that made the files."""
    then = json.loads((KEPT / "versions.json").read_text())
    capability = torch.backends.cpu.get_cpu_capability()
    return then == {"torch": torch.__version__, "cpu": capability, "processor": processor()}


def check_weights(state: dict[str, torch.Tensor], wanted: dict) -> None:
    """Compare weights with a recorded digest: by all bits where the machine allows it, by sums elsewhere."""
    every = hashlib.sha256()
    assert sorted(state) == sorted(wanted["sums"])
    for name, value in sorted(state.items()):
        every.update(name.encode() + value.contiguous().numpy().tobytes())
        sums = [float(value.double().sum()), float(value.double().abs().sum())]
        assert sums == pytest.approx(wanted["sums"][name], rel=1e-3, abs=1e-3), name
    if same_machine():
        assert every.hexdigest() == wanted["sha256"]


def expected(name: str) -> dict:
    return json.loads((KEPT / name / "expected.json").read_text())


@families([*DATA])
def test_a_stopped_run_ends_as_it_would_have_then(family):
    main = retrain_specialize.main if family == "specialized" else search_run.main
    assert main(["--resume", "runs/s"]) == 0
    state = torch.load("runs/s/checkpoints/last.pt", weights_only=True)
    assert state["step"] == 4
    check_weights(state["model"], expected(family)["resumed"])


@families([*PRUNE])
def test_a_search_is_pruned_to_the_mask_of_then(family):
    suffix = "npy" if family == "connectivity" else "npz"
    assert prune_prune.main(["--run", "runs/s", *PRUNE[family], "--out", f"again.{suffix}"]) == 0
    masks = [np.load(path, allow_pickle=False) for path in (f"mask.{suffix}", f"again.{suffix}")]
    if suffix == "npy":
        assert (masks[0] == masks[1]).all()
        return
    assert sorted(masks[0]) == sorted(masks[1])
    for name in set(masks[0]) - {"checkpoint"}:
        if masks[0][name].dtype.kind == "f":
            assert masks[0][name] == pytest.approx(masks[1][name], abs=1e-5), name
        else:
            assert (masks[0][name] == masks[1][name]).all(), name


@families(TRAINED)
def test_a_trained_run_scores_what_it_scored(family):
    assert retrain_eval.main(["--run", "runs/r", *(["--rounds", "0"] if family != "connectivity" else [])]) == 0
    scores = json.loads(Path("runs/r/run.json").read_text())["eval"]
    wanted = expected(family)["eval"]
    assert scores.keys() == wanted.keys()
    for part, then in ((scores, wanted), (scores.get("iou", {}), wanted.get("iou", {}))):
        for name, value in then.items():
            if name in ("executed", "share"):  # mask branches that keep everything are executed no more
                assert 0.98 * value <= part[name] <= value * 1.0001
            elif isinstance(value, float):
                assert part[name] == pytest.approx(value, rel=1e-4, abs=1e-4), name
            elif not isinstance(value, dict | list):
                assert part[name] == value, name


@families(TRAINED)
def test_a_configuration_of_then_repeats_its_run(family):
    main = retrain_specialize.main if family == "specialized" else retrain_train.main
    assert main(["--config", "runs/r/config.yaml", "--name", "again"]) == 0
    states = [load_weights(f"runs/{run}/network.safetensors") for run in ("r", "again")]
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        if same_machine():
            assert torch.equal(value, states[1][name]), name
        # Adam steps by about its rate whatever a gradient's size: rounding turns those that are nearly zero.
        torch.testing.assert_close(value, states[1][name], rtol=1e-3, atol=5e-3)


@families(["smsr", "smpointseg", "hinge"])
def test_a_mask_whose_search_has_moved_says_how_to_go_on(family, capfd):
    note = json.loads(Path("mask.json").read_text())
    assert not Path(note["checkpoint"]).exists()
    argv = ["--mask_path", "mask.npz", "--config", "moved.yaml"]
    config = Path("runs/r/config.yaml").read_text().splitlines()
    Path("moved.yaml").write_text("\n".join(row for row in config if "checkpoint: runs" not in row))
    fails(capfd, retrain_train.main, [*argv, "--name", "refused"], [note["checkpoint"], "--search_checkpoint"])
    more = ["--search_checkpoint", "runs/s/checkpoints/last.pt", "--max_iter", "1", "--eval_limit", "1"]
    assert retrain_train.main([*argv, *more, "--name", "taken"]) == 0


def test_a_connectivity_mask_needs_no_search(tmp_path, monkeypatch):
    shutil.copy(KEPT / "connectivity" / "mask.npy", tmp_path)
    shutil.copy(KEPT / "connectivity" / "mask.json", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SPARSEMASK_HOME", str(borrow_kernels(tmp_path / "home")))
    make_data(tmp_path / "data", n=8)
    argv = ["--mask_path", "mask.npy", *data_flags(Path("data")), *SMALL, "--backbone_name", "pyramid:Pyramid"]
    assert retrain_train.main([*argv, "--max_iter", "1", "--name", "r"]) == 0


@families(TRAINED)
def test_a_trained_run_is_exported_with_its_weights(family):
    assert retrain_export.main(["--run", "runs/r", "--out", "net.safetensors", "--repeats", "0"]) == 0
    shared, ours = load_weights("net.safetensors"), load_weights("runs/r/network.safetensors")
    assert all(torch.isfinite(value).all() for value in shared.values())
    assert shared.keys() == ours.keys() and all(torch.equal(value, ours[name]) for name, value in shared.items())
