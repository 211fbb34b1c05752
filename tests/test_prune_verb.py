"""The command that prunes connectivity weights, without a search before it: what it reads, says, writes, refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sparsemask.files import sha256
from sparsemask.masks import load_mask
from sparsemask.prune import prune as prune_prune

# Stages 0 and 2 have the same inputs, a use of each by the output; stage 1 has no inputs.
WEIGHTS = {0: {(0, 1): 2.0}, 2: {(0, 1): 1.0}, 3: {(1, 1): 0.4, (3, 1): 2.0, (2, 0): 0.002}}


def checkpoint(path: Path, weights: dict = WEIGHTS, length: int = 4, **more) -> Path:
    """A checkpoint as a search writes it, as far as pruning reads it."""
    model = {"backbone.conv.weight": torch.full((2,), 1.9)}
    for stage in reversed(range(length)):  # in no particular order
        values = torch.zeros(stage + 1, 2)
        for place, value in weights.get(stage, {}).items():
            values[place] = value
        model[f"decoders.Decoders_{stage}._weight_"] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model, "space": "connectivity", "step": 7, **more}, path)
    return path


def search_run(folder: Path, **more) -> Path:
    """A finished search of this name."""
    checkpoint(folder / "checkpoints" / "last.pt", **more)
    (folder / "config.yaml").write_text("space: connectivity\n")
    (folder / "run.json").write_text('{"verb": "search", "space": "connectivity", "state": "finished"}\n')
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pruned(*flags: str) -> int:
    return prune_prune.main(list(flags))


def test_a_checkpoint_becomes_a_mask_with_its_note(capsys):
    path = checkpoint(Path("some") / "w.pt")
    assert pruned("--checkpoint", str(path)) == 0
    # Merged: stage 0 takes the use of stage 2, and the weight of 0.001, halved, is not above the threshold.
    mask = load_mask("mask.npy")
    assert np.argwhere(mask).tolist() == [[0, 0, 1], [3, 1, 1]]
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "4 of 20 connections above the threshold 0.001, 2 left after cleaning",
        "stage 1 removed: no inputs",
        "stage 2 removed: same inputs as stage 0: duplicate",
        "smallest kept weight 0.2, largest dropped weight 0.001, margin 200 times",
        "stage 0 <- G",
        "stage 3 <- D_0",
        "mask: mask.npy",
        said[-1],
    ]
    assert said[-1].startswith("next: ") and said[-1].endswith("--mask_path mask.npy")
    note = json.loads(Path("mask.json").read_text())
    assert note == {
        "space": "connectivity", "run": None, "checkpoint": str(path.resolve()), "sha256": sha256(path), "step": 7,
        "rule": {"thres": 0.001, "keep_duplicate": False, "keep_subset": False, "repeat": False},
        "connections": 2, "smallest_kept": pytest.approx(0.2), "largest_dropped": pytest.approx(0.001),
        "backbone_name": None, "strides": None,
    }  # fmt: skip


def test_a_run_keeps_its_mask_and_a_picture_too(capsys):
    run = search_run(Path("runs") / "s")
    assert pruned("--thres", "0.3", "--out", "other mask.npy") == 0
    masks = [load_mask("other mask.npy"), load_mask(run / "mask_thres_0.3.npy")]
    assert (masks[0] == masks[1]).all()
    assert np.argwhere(masks[0]).tolist() == [[2, 0, 1], [3, 3, 1]]
    assert (run / "pictures" / "mask_thres_0.3.png").stat().st_size > 1000
    assert json.loads((run / "mask_thres_0.3.json").read_text())["run"] == str(run.resolve())
    assert "mask: runs/s/mask_thres_0.3.npy and other mask.npy" in capsys.readouterr().out.splitlines()
    assert not Path("mask.npy").exists()


@pytest.mark.parametrize(
    ("flags", "connections"),
    [
        ([], [[0, 0, 1], [3, 1, 1]]),
        (["--keep_duplicate"], [[2, 0, 1], [3, 3, 1]]),  # stage 0 is covered by stage 2
        (["--keep_duplicate", "--keep_subset"], [[0, 0, 1], [2, 0, 1], [3, 1, 1], [3, 3, 1]]),
        (["--thres", "0.3"], [[2, 0, 1], [3, 3, 1]]),  # the use of stage 0 is weaker: unreachable
    ],
)
def test_flags_of_cleaning(flags, connections):
    weights = {**WEIGHTS}
    assert pruned("--checkpoint", str(checkpoint(Path("w.pt"), weights)), *flags) == 0
    assert np.argwhere(load_mask("mask.npy")).tolist() == connections


# Stage 1 has no inputs: without its use stage 2 is a duplicate of stage 0, which one pass does not come back to.
AGAIN = {0: [(0, 1)], 2: [(0, 1), (2, 1)], 3: [(3, 1)], 4: [(0, 1), (1, 1), (3, 0), (4, 1)]}


def test_cleaning_is_repeated_where_wanted():
    weights = {stage: dict.fromkeys(places, 1.0) for stage, places in AGAIN.items()}
    path = str(checkpoint(Path("w.pt"), weights, 5))
    assert pruned("--checkpoint", path) == 0
    once = load_mask("mask.npy")
    assert pruned("--checkpoint", path, "--repeat") == 0
    again = load_mask("mask.npy")
    assert once[2].any() and once[3, 3, 1] and not once[2, 2].any()
    assert not again[2].any() and again[3, 1, 1] and not again[3, 3].any()
    assert (once[4] == again[4]).all() and (once[0] == again[0]).all()


def test_strides_of_a_known_backbone(capsys):
    weights = {8: {(8, 0): 1.0, (3, 0): 1.0}}
    assert (
        pruned("--checkpoint", str(checkpoint(Path("w.pt"), weights, 9, config={"backbone_name": "mobilenet_v2"}))) == 0
    )
    note = json.loads(Path("mask.json").read_text())
    assert note["backbone_name"] == "mobilenet_v2"
    assert len(note["strides"]) == 9 and note["strides"] == sorted(note["strides"], reverse=True)
    assert f"stage 8 (/{note['strides'][8]}) <- E_3, E_8" in capsys.readouterr().out


def other_space():
    return ["--checkpoint", str(checkpoint(Path("w.pt"), space="smsr")), "--space", "connectivity"]


def no_weights():
    torch.save({"model": {"conv.weight": torch.zeros(3)}}, "w.pt")
    return ["--checkpoint", "w.pt"]


def a_stage_missing():
    state = torch.load(checkpoint(Path("w.pt")), weights_only=True)
    del state["model"]["decoders.Decoders_1._weight_"]
    torch.save(state, "w.pt")
    return ["--checkpoint", "w.pt"]


BAD = {
    "no inputs": (lambda: ["--checkpoint", str(checkpoint(Path("w.pt"), {0: {(0, 1): 1.0}}))], "no mask written: the"),
    "another space": (other_space, "a checkpoint of space 'smsr', not of 'connectivity'"),
    "no connection weights": (no_weights, "w.pt: no connection weights in it"),
    "a stage missing": (a_stage_missing, "w.pt: no connection weights in it"),
    "suffix": (
        lambda: ["--checkpoint", str(checkpoint(Path("w.pt"))), "--out", "mask.npz"],
        "--out mask.npz: a connectivity mask",
    ),
    "folder": (lambda: ["--checkpoint", str(checkpoint(Path("w.pt"))), "--out", "no/mask.npy"], "no such folder: no"),
}


@pytest.mark.parametrize("name", BAD)
def test_refusals_write_nothing(name, capsys):
    make, words = BAD[name]
    flags = make()
    before = sorted(Path().rglob("*"))
    assert pruned(*flags) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert words in line
    assert sorted(Path().rglob("*")) == before


def test_thresholds_below_0_are_refused_and_0_is_allowed():
    assert pruned("--checkpoint", str(checkpoint(Path("w.pt"))), "--thres", "0") == 0
    assert np.count_nonzero(load_mask("mask.npy")) == 3
    assert pruned("--checkpoint", "w.pt", "--thres", "-0.5") == 2
