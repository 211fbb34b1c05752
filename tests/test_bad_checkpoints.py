"""Checkpoints that are torn, hostile or of something else, and disks that refuse: one line, nothing lost."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest
import torch

from sparsemask.prune import prune as prune_prune
from sparsemask.retrain import eval as retrain_eval
from sparsemask.retrain import train as retrain_train
from sparsemask.search import run as search_run
from spoilt import TRAIN, Code, listing, truncate
from tiny import ROOT, environment, fails


def torn_checkpoint(p):
    truncate(p / "runs/s/checkpoints/last.pt")


def evil_checkpoint(p):
    (p / "runs/s/checkpoints/last.pt").write_bytes(pickle.dumps({"model": Code()}))


def evil_zip_checkpoint(p):
    torch.save({"model": Code()}, p / "runs/s/checkpoints/last.pt")


def other_space(p):
    path = p / "runs/s/checkpoints/last.pt"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "space": "smsr"}, path)


def other_depth(p):
    path = p / "runs/s/checkpoints/last.pt"
    state = torch.load(path, weights_only=True)
    state["config"]["depth"] = 16
    torch.save(state, path)


def weights_diverged(p):
    path = p / "runs/s/checkpoints/last.pt"
    state = torch.load(path, weights_only=True)
    state["model"]["decoders.Decoders_3._weight_"][0, 0] = float("nan")
    torch.save(state, path)


def all_weights_small(p):
    path = p / "runs/s/checkpoints/last.pt"
    state = torch.load(path, weights_only=True)
    for key, value in state["model"].items():
        if key.endswith("_weight_"):
            value.zero_()
    torch.save(state, path)


CHECKPOINT_CASES = [
    (torn_checkpoint, ["last.pt", "truncated"]),
    (evil_checkpoint, ["last.pt", "code"]),
    (evil_zip_checkpoint, ["last.pt", "code"]),
    (other_space, ["space 'smsr'", "'connectivity'"]),
]


@pytest.mark.parametrize(("spoil", "words"), CHECKPOINT_CASES, ids=lambda v: getattr(v, "__name__", ""))
def test_bad_checkpoints(place, capfd, spoil, words):
    spoil(place)
    before = listing(place)
    fails(capfd, prune_prune.main, ["--run", "runs/s"], words)
    inherit = ["--inherit", "encoder", "--search_checkpoint", "runs/s/checkpoints/last.pt"]
    fails(capfd, retrain_train.main, ["--mask_path", "mask.npy", *inherit, *TRAIN], words)
    fails(capfd, retrain_eval.main, ["--run", "runs/s"], words)
    assert not (place / "executed").exists()
    assert {f for f in listing(place) - before if "checkpoints" in f} == set()


def test_checkpoint_of_another_depth(place, capfd):
    other_depth(place)
    fails(capfd, search_run.main, ["--resume", "runs/s"], ["last.pt", "does not fit"])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(weights_diverged, ["not finite"]), (all_weights_small, ["no mask written", "no inputs"])],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_unusable_weights_write_no_mask(place, capfd, spoil, words):
    spoil(place)
    (place / "mask.npy").unlink()
    fails(capfd, prune_prune.main, ["--run", "runs/s"], words)
    assert not (place / "mask.npy").exists()


def test_full_disk_keeps_the_last_good_checkpoint(place):
    # The system refuses files beyond a size, as a full disk does: the run cannot write its next checkpoint.
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "import sparsemask.search.run; sys.exit(sparsemask.search.run.main(sys.argv[1:]))"
    )
    checkpoint = place / "runs/s/checkpoints/last.pt"
    state = torch.load(checkpoint, weights_only=True)
    state["config"]["max_iter"] = 9
    torch.save(state, checkpoint)
    kept = checkpoint.read_bytes()
    env = {**environment(place / "home"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code, "--resume", "runs/s"],
        cwd=place,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert ".pt: the file would be larger than this system allows" in done.stderr
    assert checkpoint.read_bytes() == kept
    assert not list((place / "runs/s/checkpoints").glob("*.part"))
