"""Bad input, verb by verb: one clear line, exit status 2, nothing lost and nothing half written."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import prune.prune
import retrain.eval
import retrain.train
import search.run
from spaces.connectivity.named_masks import named_mask
from sparsemask.masks import save_mask
from tiny import SMALL, data_flags, fails, make_data, verb


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A folder with data and one finished search, pruned."""
    folder = tmp_path_factory.mktemp("made")
    make_data(folder / "data")
    run = verb(
        "search/run.py", ["--search", *data_flags(folder / "data"), *SMALL, "--max_iter", "3", "--name", "s"], folder
    )
    assert run.returncode == 0, run.stderr
    save_mask(folder / "mask.npy", named_mask("unet", 9))
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch) -> Path:
    """A copy of it that a test may spoil, as working directory."""
    folder = tmp_path / "place"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SPARSEMASK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SPARSEMASK_WEIGHTS", raising=False)
    return folder


def listing(folder: Path) -> set[str]:
    """Every file below a folder but the data, which a case may have spoiled on purpose."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "data" not in p.parts}


class Code:
    def __reduce__(self):
        return os.system, ("touch executed",)


def _truncate(path: Path, keep: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])


def missing_picture(p):
    (p / "data/img/001.png").unlink()


def missing_label(p):
    (p / "data/gt/002.png").unlink()


def missing_list(p):
    (p / "data/train.txt").unlink()


def empty_list(p):
    (p / "data/train.txt").write_text("\n")


def binary_list(p):
    (p / "data/train.txt").write_bytes(b"\xff\xfe\x00")


def torn_picture(p):
    for path in (p / "data/img").iterdir():
        _truncate(path, 0.6)


def label_beyond(p):
    for path in (p / "data/gt").iterdir():
        Image.fromarray(np.full((40, 43), 9, np.uint8)).save(path)


def label_size(p):
    for path in (p / "data/gt").iterdir():
        Image.fromarray(np.zeros((41, 43), np.uint8)).save(path)


def colour_labels(p):
    for path in (p / "data/gt").iterdir():
        Image.fromarray(np.full((40, 43, 3), 128, np.uint8)).save(path)


def nothing(p):
    pass


DATA = data_flags(Path("data"))
SEARCH = ["--search", *DATA, *SMALL, "--max_iter", "2", "--name", "new"]
TRAIN = [*DATA, *SMALL, "--max_iter", "2", "--name", "new"]

DATA_CASES = [
    (missing_picture, ["1 of 9 pictures absent", "img/001"]),
    (missing_label, ["1 of 9 labels absent", "002.png"]),
    (missing_list, ["list not found", "train.txt"]),
    (empty_list, ["train.txt", "empty"]),
    (binary_list, ["train.txt", "not a text file"]),
    (torn_picture, ["data/img", "truncated"]),
    (label_beyond, ["data/gt", "label 9 beyond the 4 classes"]),
    (label_size, ["data/gt", "43x41", "43x40"]),
    (colour_labels, ["data/gt", "colour"]),
]


@pytest.mark.parametrize(("spoil", "words"), DATA_CASES, ids=lambda v: getattr(v, "__name__", ""))
@pytest.mark.parametrize("workers", ["0", "1"])
def test_bad_data(place, capfd, spoil, words, workers):
    spoil(place)
    fails(capfd, search.run.main, [*SEARCH, "--n_worker", workers], words)


FLAG_CASES = [
    (["--batch_size", "3", "--accumulate", "2"], ["--batch_size 3", "multiple of 2"]),
    (["--batch_size", "1"], ["batch norm needs 2"]),
    (["--space", "galaxy"], ["unknown space 'galaxy'", "connectivity"]),
    (["--task", "poetry"], ["unknown task 'poetry'", "segmentation"]),
    (["--backbone_name", "vgg99"], ["unknown backbone 'vgg99'", "mobilenet_v2"]),
    (["--pretrained_model", "no.pth"], ["no such file: no.pth"]),
    (["--pretrained_model", "data/img/000.png"], ["000.png", "not a checkpoint"]),
    (["--config", "no.yaml"], ["configuration not found: no.yaml"]),
    (["--lr", "fast"], ["--lr", "fast"]),
    (["--name", "../up"], ["--name '../up'"]),
    (["--name", "s"], ["run runs/s exists", "--resume runs/s"]),
    (["--class_names", "data/train.txt"], ["9 class names for 4 classes"]),
    (["--lr", "1e30"], ["no longer finite"]),
]


@pytest.mark.parametrize(("flags", "words"), FLAG_CASES, ids=lambda v: " ".join(v))
def test_bad_flags(place, capfd, flags, words):
    kept = (place / "runs/s/checkpoints/last.pt").read_bytes()
    fails(capfd, search.run.main, [*SEARCH, *flags], words)
    assert (place / "runs/s/checkpoints/last.pt").read_bytes() == kept


def other_length(p):
    save_mask(p / "mask.npy", named_mask("unet", 5))


def floats(p):
    np.save(p / "mask.npy", np.ones((9, 9, 2)))


def wrong_shape(p):
    np.save(p / "mask.npy", np.ones((9, 9), bool))


def empty_mask(p):
    np.save(p / "mask.npy", np.zeros((9, 9, 2), bool))


def above_diagonal(p):
    np.save(p / "mask.npy", np.ones((9, 9, 2), bool))


def torn_mask(p):
    _truncate(p / "mask.npy")


def pickled_mask(p):
    (p / "mask.npy").write_bytes(pickle.dumps(Code()))


def object_mask(p):
    np.save(p / "mask.npy", np.array([Code()], dtype=object), allow_pickle=True)


def no_mask(p):
    (p / "mask.npy").unlink()


MASK_CASES = [
    (other_length, ["mask.npy", "5 features", "9"]),
    (floats, ["mask.npy", "booleans", "float64"]),
    (wrong_shape, ["mask.npy", "(9, 9)"]),
    (empty_mask, ["mask.npy", "no inputs"]),
    (above_diagonal, ["mask.npy", "j > i"]),
    (torn_mask, ["mask.npy", "truncated"]),
    (pickled_mask, ["mask.npy", "not a mask file"]),
    (object_mask, ["mask.npy"]),
    (no_mask, ["mask not found: mask.npy", "prune"]),
]


@pytest.mark.parametrize(("spoil", "words"), MASK_CASES, ids=lambda v: getattr(v, "__name__", ""))
def test_bad_masks(place, capfd, spoil, words):
    spoil(place)
    before = listing(place)
    fails(capfd, retrain.train.main, ["--mask_path", "mask.npy", *TRAIN], words)
    assert listing(place) == before  # no run folder, no half of one
    assert not (place / "executed").exists()


def torn_checkpoint(p):
    _truncate(p / "runs/s/checkpoints/last.pt")


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
    fails(capfd, prune.prune.main, ["--run", "runs/s"], words)
    inherit = ["--inherit", "encoder", "--search_checkpoint", "runs/s/checkpoints/last.pt"]
    fails(capfd, retrain.train.main, ["--mask_path", "mask.npy", *inherit, *TRAIN], words)
    fails(capfd, retrain.eval.main, ["--run", "runs/s"], words)
    assert not (place / "executed").exists()
    assert {f for f in listing(place) - before if "checkpoints" in f} == set()


def test_checkpoint_of_another_depth(place, capfd):
    other_depth(place)
    fails(capfd, search.run.main, ["--resume", "runs/s"], ["last.pt", "does not fit"])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(weights_diverged, ["not finite"]), (all_weights_small, ["no mask written", "no inputs"])],
    ids=lambda v: getattr(v, "__name__", ""),
)
def test_unusable_weights_write_no_mask(place, capfd, spoil, words):
    spoil(place)
    (place / "mask.npy").unlink()
    fails(capfd, prune.prune.main, ["--run", "runs/s"], words)
    assert not (place / "mask.npy").exists()


OTHER_CASES = [
    (prune.prune.main, ["--run", "runs/none"], ["runs/none: no run here"]),
    (prune.prune.main, ["--exp_path", "empty"], ["no finished or running search", "make one: "]),
    (prune.prune.main, ["--checkpoint", "no.pt"], ["checkpoint not found: no.pt"]),
    (prune.prune.main, ["--run", "runs/s", "--thres", "1.5"], ["[0, 1)"]),
    (prune.prune.main, ["--run", "runs/s", "--out", "no/where/mask.npy"], ["no such folder: no/where"]),
    (prune.prune.main, ["--run", "runs/s", "--out", "mask.txt"], ["mask.txt", ".npy"]),
    (retrain.train.main, TRAIN, ["--mask_path is missing"]),
    (retrain.train.main, ["--mask_path", "unett", *TRAIN], ["unknown mask 'unett'", "unet"]),
    (retrain.train.main, ["--mask_path", "unet", "--ft_model", "no.pt", *TRAIN], ["no.pt"]),
    (retrain.eval.main, ["--run", "runs/none"], ["runs/none: no run here"]),
    (retrain.eval.main, [], ["no finished or running retrain"]),
    (search.run.main, ["--resume", "runs/none"], ["runs/none: no run here"]),
    (search.run.main, ["--resume"], ["--name"]),
    (retrain.train.main, ["--resume", "runs/s"], ["a run of 'search'"]),
    (search.run.main, ["--search", "--im_path", "data/img"], ["--gt_path", "--training_list"]),
    (search.run.main, ["--search", "--voc_root", "data"], ["data", "JPEGImages"]),
]


@pytest.mark.parametrize(
    ("main", "argv", "words"), OTHER_CASES, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_bad_paths_and_names(place, capfd, main, argv, words):
    before = listing(place)
    fails(capfd, main, argv, words)
    assert listing(place) == before


def test_full_disk_keeps_the_last_good_checkpoint(place):
    # The system refuses files beyond a size, as a full disk does: the run cannot write its next checkpoint.
    code = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "import search.run; sys.exit(search.run.main(sys.argv[1:]))"
    )
    import subprocess
    import sys

    from tiny import ROOT, environment

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
