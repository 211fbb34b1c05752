"""Checkpoints and weights: every layout is read, nothing of a stranger's is run."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict

import pytest
import torch
from safetensors import safe_open
from torch import nn

import sparsemask
from sparsemask import UseError
from sparsemask.spaces.connectivity import FCN, ConnectivitySpace
from sparsemask.weights import load_strictly, load_weights, read_checkpoint, save_safetensors

STATE = OrderedDict(a=torch.arange(3.0), b=torch.ones(2, 2))
PREFIXED = {f"module.{key}": value for key, value in STATE.items()}

LAYOUTS = {
    "ours": {"model": STATE, "optimizer": {"state": {}}, "step": 3},
    "public": {"state_dict": PREFIXED, "iter": 5, "optimizer": {}},
    "bare": STATE,
    "bare, of DataParallel": PREFIXED,
}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", LAYOUTS)
def test_every_layout_gives_the_bare_state(name, legacy, tmp_path):
    path = tmp_path / "c.pth"
    torch.save(LAYOUTS[name], path, _use_new_zipfile_serialization=not legacy)
    found = sparsemask.load_weights(path)
    assert list(found) == list(STATE) and all(torch.equal(found[k], STATE[k]) for k in STATE)


def test_safetensors_round_trip_with_its_origin(tmp_path):
    path = tmp_path / "w.safetensors"
    shared = torch.ones(4, 4)
    save_safetensors(path, {"a": shared, "b": shared.t()[1:]}, {"run": "runs/a"})  # shared memory, not contiguous
    found = load_weights(path)
    assert torch.equal(found["b"], shared[1:])
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"run": "runs/a"}
    assert list(tmp_path.iterdir()) == [path]  # no temporary file is left


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("writer", ["zip", "legacy", "pickle"])
def test_a_pickle_with_code_is_refused_and_not_run(writer, tmp_path):
    path, mark = tmp_path / "c.pth", tmp_path / "was_run"
    if writer == "pickle":
        path.write_bytes(pickle.dumps({"state_dict": Evil(str(mark))}))
    else:
        torch.save({"state_dict": Evil(str(mark))}, path, _use_new_zipfile_serialization=writer == "zip")
    with pytest.raises(UseError, match="refused.*nothing was run"):
        read_checkpoint(path)
    assert not mark.exists()


def saved(tmp_path, **options) -> bytes:
    torch.save({"model": STATE}, tmp_path / "whole.pth", **options)
    return (tmp_path / "whole.pth").read_bytes()


BROKEN = {
    "empty": ("c.pth", lambda t: b""),
    "text": ("c.pth", lambda t: b"this is no checkpoint\n" * 9),
    "cut zip": ("c.pth", lambda t: saved(t)[:-200]),
    "cut legacy": ("c.pth", lambda t: saved(t, _use_new_zipfile_serialization=False)[:-20]),
    "cut legacy head": ("c.pth", lambda t: saved(t, _use_new_zipfile_serialization=False)[:60]),
    "noise": ("c.pth", lambda t: bytes(range(256)) * 4),
    "safetensors": ("c.safetensors", lambda t: b"\xff" * 40),
    "empty safetensors": ("c.safetensors", lambda t: b""),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_one_clear_line(name, tmp_path):
    file, make = BROKEN[name]
    (tmp_path / file).write_bytes(make(tmp_path))
    with pytest.raises(UseError, match="truncated or not a") as error:
        read_checkpoint(tmp_path / file)
    assert len(str(error.value)) < 300 + len(str(tmp_path))


def test_absent_files_folders_and_files_without_weights(tmp_path):
    torch.save({"iter": 3, "note": "x"}, tmp_path / "no_weights.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for path, words in (
        (tmp_path / "absent.pth", "checkpoint not found"),
        (tmp_path, "is a folder"),
        (tmp_path / "no_weights.pth", "no weights in it.*iter, note"),
        (tmp_path / "list.pth", "expected a checkpoint"),
    ):
        with pytest.raises(UseError, match=words):
            load_weights(path)


def test_loading_is_strict_and_names_what_differs():
    net = nn.Linear(2, 3)
    before = net.weight.clone()
    for state, words in (
        ({"weight": torch.zeros(3, 2)}, "1 tensors are missing \\(bias\\)"),
        (dict(net.state_dict(), more=torch.zeros(1)), "1 do not belong here \\(more\\)"),
        (dict(net.state_dict(), weight=torch.zeros(4, 2)), "weight is \\(4, 2\\) in the file, \\(3, 2\\)"),
    ):
        with pytest.raises(UseError, match=f"w.pth: .*{words}"):
            load_strictly(net, state, "w.pth")
        assert torch.equal(net.weight, before)
    load_strictly(net, {"weight": torch.zeros(3, 2), "bias": torch.ones(3)}, "w.pth")
    assert not net.weight.any()


def test_class_count_and_depth_are_said_in_plain_words():
    space = ConnectivitySpace()
    net = space.network("unet", {"n_class": 21, "depth": 64})
    for options, words in (
        ({"n_class": 5, "depth": 64}, "classes: the file has 5, the network 21"),
        ({"n_class": 21, "depth": 16}, "decoder depth: the file has 16, the network 64"),
    ):
        with pytest.raises(UseError, match=words):
            load_strictly(net, space.network("unet", options).state_dict(), "c.pth")
    with pytest.raises(UseError, match="classes: the file has 2"):
        load_strictly(FCN(), FCN(num_classes=2).state_dict(), "c.pth")


@pytest.mark.real
def test_a_real_legacy_file(shared_data):
    found = load_weights(shared_data / "weights" / "resnet20-12fca82f.th")
    assert "conv1.weight" in found and found["linear.weight"].shape == (10, 64)
