"""Bad input, verb by verb: one clear line, exit status 2, nothing lost and nothing half written."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

from sparsemask.masks import save_mask
from sparsemask.prune import prune as prune_prune
from sparsemask.retrain import eval as retrain_eval
from sparsemask.retrain import train as retrain_train
from sparsemask.search import run as search_run
from sparsemask.spaces.connectivity.named_masks import named_mask
from spoilt import SEARCH, TRAIN, Code, listing, truncate
from tiny import fails


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
        truncate(path, 0.6)


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
    fails(capfd, search_run.main, [*SEARCH, "--n_worker", workers], words)


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
    (["--lr", "1e30"], ["not finite", "lower --lr"]),
]


@pytest.mark.parametrize(("flags", "words"), FLAG_CASES, ids=lambda v: " ".join(v))
def test_bad_flags(place, capfd, flags, words):
    kept = (place / "runs/s/checkpoints/last.pt").read_bytes()
    fails(capfd, search_run.main, [*SEARCH, *flags], words)
    assert (place / "runs/s/checkpoints/last.pt").read_bytes() == kept


def test_folder_that_is_no_run_is_left_alone(place, capfd):
    # Even an error that comes later must not take a folder away that the run did not make.
    (place / "runs/mine").mkdir()
    (place / "runs/mine/thesis.txt").write_text("years of work")
    fails(capfd, search_run.main, [*SEARCH, "--name", "mine", "--batch_size", "1"], ["is no run"])
    assert (place / "runs/mine/thesis.txt").read_text() == "years of work"


def test_new_run_that_fails_early_leaves_no_folder(place, capfd):
    fails(capfd, search_run.main, [*SEARCH, "--name", "new", "--batch_size", "1"], ["batch norm needs 2"])
    assert not (place / "runs/new").exists()


def test_resumed_run_is_never_taken_away(place, capfd):
    (place / "runs/s/checkpoints/last.pt").unlink()
    config = place / "runs/s/config.yaml"
    config.write_text(config.read_text() + "pretrained_model: gone.pth\n")
    fails(capfd, search_run.main, ["--resume", "runs/s"], ["gone.pth"])
    assert config.exists()


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
    truncate(p / "mask.npy")


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
    fails(capfd, retrain_train.main, ["--mask_path", "mask.npy", *TRAIN], words)
    assert listing(place) == before  # no run folder, no half of one
    assert not (place / "executed").exists()


OTHER_CASES = [
    (prune_prune.main, ["--run", "runs/none"], ["runs/none: no run here"]),
    (prune_prune.main, ["--exp_path", "empty"], ["no finished or running search", "make one: "]),
    (prune_prune.main, ["--checkpoint", "no.pt"], ["checkpoint not found: no.pt"]),
    (prune_prune.main, ["--run", "runs/s", "--thres", "1.5"], ["[0, 1)"]),
    (prune_prune.main, ["--run", "runs/s", "--out", "no/where/mask.npy"], ["no such folder: no/where"]),
    (prune_prune.main, ["--run", "runs/s", "--out", "mask.txt"], ["mask.txt", ".npy"]),
    (retrain_train.main, TRAIN, ["--mask_path is missing"]),
    (retrain_train.main, ["--mask_path", "unett", *TRAIN], ["unknown mask 'unett'", "unet"]),
    (retrain_train.main, ["--mask_path", "unet", "--ft_model", "no.pt", *TRAIN], ["no.pt"]),
    (retrain_eval.main, ["--run", "runs/none"], ["runs/none: no run here"]),
    (retrain_eval.main, [], ["no finished or running retrain"]),
    (search_run.main, ["--resume", "runs/none"], ["runs/none: no run here"]),
    (search_run.main, ["--resume"], ["--name"]),
    (retrain_train.main, ["--resume", "runs/s"], ["a run of 'search'"]),
    (search_run.main, ["--search", "--im_path", "data/img"], ["--gt_path", "--training_list"]),
    (search_run.main, ["--search", "--voc_root", "data"], ["data", "JPEGImages"]),
]


@pytest.mark.parametrize(
    ("main", "argv", "words"), OTHER_CASES, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_bad_paths_and_names(place, capfd, main, argv, words):
    before = listing(place)
    fails(capfd, main, argv, words)
    assert listing(place) == before
