"""Every package has one name, `sparsemask.…`, and a checkout's other spellings are the same modules."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tiny import ROOT


def run(code: str, cwd: Path, *argv: str) -> str:
    """Runs code in an interpreter of its own, with a checkout's root on its path."""
    done = subprocess.run(
        [sys.executable, *(argv or ("-c", code))],
        cwd=cwd, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


SAME = """
import sys
for name, module in list(sys.modules.items()):
    if name.partition('.')[0] in ('VOC12', 'prune', 'retrain', 'search', 'spaces'):
        assert module is sys.modules['sparsemask.' + name], name
        assert module.__name__ == module.__spec__.name == 'sparsemask.' + name, module.__spec__
        assert module.__package__ == module.__spec__.parent, module.__package__
files = [m.__file__ for n, m in sys.modules.items() if n.startswith('sparsemask.') and getattr(m, '__file__', None)]
assert len(files) == len(set(files))
"""
PUBLIC = """
from prune.connectivity import prune_connectivity
from search.losses import sparse_loss
from spaces.connectivity import FullyDenseNetwork, PrunedNetwork
from spaces.sparse_conv import SMPointSeg, load_smsr
import retrain.train, spaces, VOC12.lists
assert 'connectivity' in spaces.available() and spaces.get('connectivity').family == 'connectivity'
"""
OURS = "".join(f"import sparsemask.{name}\n" for name in ("VOC12.lists", "retrain.train", "search.losses", "spaces"))


@pytest.mark.parametrize("first", [PUBLIC, OURS], ids=["old", "new"])
def test_both_spellings_are_one_module(tmp_path, first):
    check = """
import sparsemask.search.losses
assert sparse_loss is sparsemask.search.losses.sparse_loss
assert FullyDenseNetwork is sparsemask.spaces.connectivity.FullyDenseNetwork
print(FullyDenseNetwork.__module__)
"""
    said = run("\n".join([first, PUBLIC, OURS, SAME, check]), tmp_path)
    assert said.startswith("sparsemask.spaces.connectivity")


def test_a_name_that_is_none_of_ours_is_not_found(tmp_path):
    code = """
import importlib, search
for name in ('search.galaxy', 'sparsemask.search.galaxy', 'sparsemask.galaxy', 'sparsemask.tests', 'search.a.b'):
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        assert error.name.removeprefix('sparsemask.') in ('search.galaxy', 'search.a', 'galaxy', 'tests'), error
    else:
        raise AssertionError(name)
"""
    run(code, tmp_path)


def test_names_in_text_reach_the_same_modules(monkeypatch):
    from sparsemask.search import losses

    monkeypatch.setattr("search.losses.sparse_loss", "replaced")
    assert losses.sparse_loss == "replaced"


def test_commands_run_as_modules_of_a_checkout(tmp_path):
    said = run("", tmp_path, "-m", "VOC12.sample", "--help")
    assert "draw" in said and "--out" in said
    assert run("", tmp_path, "-m", "sparsemask.VOC12.sample", "--help") == said
    verbs = run("", tmp_path, "-m", "sparsemask", "--help")
    assert "sparsemask search" in verbs
    assert run("", tmp_path, "-m", "sparsemask.cli", "--help") == verbs


@pytest.mark.parametrize(
    "name",
    [
        "sparsemask.load_mask", "sparsemask.save_mask", "sparsemask.trust", "sparsemask.masks.load_mask",
        "sparsemask.masks.save_mask", "sparsemask.fine_masks.load_masks", "sparsemask.fine_masks.save_masks",
        "sparsemask.points.build_graph", "sparsemask.points.PointBatch", "sparsemask.spaces.sparse_conv.SMSR",
        "sparsemask.spaces.sparse_conv.SMPointSeg", "sparsemask.spaces.sparse_conv.load_smsr",
        "sparsemask.tasks.points.PointsTask", "sparsemask.tasks.stereo.StereoTask",
        "sparsemask.VOC12.sample.make_sample",
    ],
)  # fmt: skip
def test_names_that_users_import_stay(name):
    module, _, attribute = name.rpartition(".")
    assert callable(getattr(importlib.import_module(module), attribute))
