"""Weights from elsewhere: entries and prefixes of wrappers, files that are something else, non-finite values."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from sparsemask import UseError, weight_files
from sparsemask.weights import load_strictly, load_weights, read_checkpoint, save_safetensors

STATE = {"conv.weight": torch.arange(6.0).reshape(2, 3), "conv.bias": torch.ones(2)}


def prefixed(prefix: str) -> dict:
    return {prefix + key: value for key, value in STATE.items()}


@pytest.fixture(autouse=True)
def nothing_said_yet(monkeypatch):
    monkeypatch.setattr(weight_files, "_said", set())


WRAPPED = {
    "compiled": (prefixed("_orig_mod."), "prefix '_orig_mod.'"),
    "DataParallel of compiled": ({"state_dict": prefixed("module._orig_mod.")}, "prefix 'module._orig_mod.'"),
    "compiled of DataParallel": (prefixed("_orig_mod.module."), "prefix '_orig_mod.module.'"),
    "a compiled part": ({"conv._orig_mod.weight": STATE["conv.weight"], "conv.bias": STATE["conv.bias"]}, "_orig_mod."),
    "params": ({"params": STATE}, "entry 'params'"),
    "params_ema before params": ({"params": prefixed("old."), "params_ema": STATE}, "entry 'params_ema'"),
    "net": ({"net": prefixed("module."), "acc": 93.1, "epoch": 7}, "entry 'net'"),
    "ema": ({"ema": prefixed("_orig_mod."), "updates": 3}, "entry 'ema', prefix '_orig_mod.'"),
    "AveragedModel": ({"n_averaged": torch.tensor(3), **prefixed("module.")}, ""),
    "usual": ({"model": prefixed("module.")}, ""),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_wrappers_are_taken_off_and_said(name, tmp_path, capsys):
    content, words = WRAPPED[name]
    torch.save(content, tmp_path / "w.pth")
    for _ in range(2):  # said once
        found = load_weights(tmp_path / "w.pth")
    assert sorted(found) == sorted(STATE) and all(torch.equal(found[key], STATE[key]) for key in STATE)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(words) and all(words in line and "w.pth" in line for line in lines)


def test_names_that_merely_contain_a_prefix_stay(tmp_path, capsys):
    state = {"module.a": torch.ones(1), "b": torch.ones(1), "x.my_orig_mod.y": torch.ones(1)}
    torch.save(state, tmp_path / "w.pth")
    assert list(load_weights(tmp_path / "w.pth")) == list(state) and not capsys.readouterr().err


INDEX = json.dumps({"metadata": {}, "weight_map": {"a": "m-00001-of-00002.bin", "b": "m-00002-of-00002.bin"}}).encode()
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 4711\n"
FOREIGN = {
    "pointer.pth": (POINTER, "Git LFS pointer for a file of 4711 bytes"),
    "pointer.safetensors": (POINTER, "Git LFS pointer"),
    "page.pt": (b"\n<!DOCTYPE html>\n<html><body>Sign in</body></html>", "web page"),
    "page.safetensors": (b"<html>", "web page"),
    "model.safetensors.index.json": (INDEX, "index of a checkpoint in 2 parts"),
    "index.pth": (INDEX, "index of a checkpoint in 2 parts"),
    "answer.pth": (b'{"error": "not found"}', "JSON text"),
    "packed.pth": (b"\x1f\x8b\x08\0" + b"\0" * 60, "compressed"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_what_a_file_really_is_is_said(name, tmp_path):
    content, words = FOREIGN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UseError, match=words):
        read_checkpoint(tmp_path / name)


def test_shards_and_wrong_suffixes_are_named(tmp_path):
    for name in ("model-00001-of-00003.safetensors", "pytorch_model-00002-of-00003.bin"):
        save_safetensors(tmp_path / name, STATE, {})
        with pytest.raises(UseError, match=r"is part \d of 3 of a sharded checkpoint"):
            load_weights(tmp_path / name)
    save_safetensors(tmp_path / "model-00001-of-00001.safetensors", STATE, {})
    assert set(load_weights(tmp_path / "model-00001-of-00001.safetensors")) == set(STATE)
    torch.save(STATE, tmp_path / "torch.safetensors")
    with pytest.raises(UseError, match="rename it to .pth"):
        load_weights(tmp_path / "torch.safetensors")
    save_safetensors(tmp_path / "st.pth", STATE, {})
    with pytest.raises(UseError, match="rename it to .safetensors"):
        load_weights(tmp_path / "st.pth")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(value, tmp_path):
    net = nn.BatchNorm1d(2)
    before = {key: one.clone() for key, one in net.state_dict().items()}
    state = {**before, "running_var": torch.tensor([1.0, value])}
    with pytest.raises(UseError, match="not finite .*: running_var"):
        load_strictly(net, state, "w.pth")
    assert all(torch.equal(net.state_dict()[key], before[key]) for key in before)
    torch.save({"model": state}, tmp_path / "w.pth")
    with pytest.raises(UseError, match=r"w\.pth: 1 of 5 tensors are not finite .*: running_var"):
        load_weights(tmp_path / "w.pth")
