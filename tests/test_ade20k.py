"""ADE20K folders: labels shifted by one, scores against brute force, and the verbs on drawn pictures."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sparsemask.retrain import eval as retrain_eval
from sparsemask.retrain import train as retrain_train
from sparsemask.synthetic.dense_tasks import make_ade20k
from sparsemask.synthetic.objects import CLASS_NAMES
from sparsemask.tasks import get
from sparsemask.tasks.ade20k.data import Ade20kDataset, object_names
from tiny import SMALL, fails


@pytest.fixture(scope="module")
def ade(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("ade") / "ADEChallengeData2016"
    make_ade20k(folder, train=6, val=3, size=48)
    return folder


def options(**given):
    values = retrain_train.parser().resolve({"task": "ade20k", "crop_size": 48, **given})
    return values


def test_labels_are_shifted_and_zero_is_ignored(tmp_path):
    stored = np.array([[0, 1, 2, 150]], np.uint8)
    Image.fromarray(stored).save(tmp_path / "a.png")
    data = Ade20kDataset([(tmp_path / "a.jpg", tmp_path / "a.png")], 150)
    assert data.read(str(tmp_path / "a.png")).tolist() == [[255, 0, 1, 149]]


@pytest.mark.parametrize("above", [False, True], ids=["the folder", "the one above it"])
def test_layout(ade, above):
    given = options(data_root=str(ade.parent if above else ade))
    task = get("ade20k", given)
    assert task.classes == list(CLASS_NAMES)
    assert task.config.data.n_class == task.n_output == 21
    assert (len(task.train_data), len(task.eval_data)) == (6, 3)
    stored = np.array(Image.open(ade / "annotations/validation/0006.png")).astype(int)
    assert np.array_equal(task.eval_data.load(0)[1], np.where(stored == 0, 255, stored - 1))


def test_a_hundred_and_fifty_classes_without_names(ade, tmp_path):
    shutil.copytree(ade, tmp_path / "a")
    (tmp_path / "a/objectInfo150.txt").unlink()
    task = get("ade20k", options(data_root=str(tmp_path / "a")))
    assert task.n_output == 150 and task.classes[149] == "class 149"


def test_published_class_names(tmp_path):
    rows = [
        "Idx\tRatio\tTrain\tVal\tStuff\tName",
        "1 \t0.1576 \t11664 \t1172 \t1 \twall",
        "2\t0.1\t6\t6\t1\tbuilding, edifice",
    ]
    (tmp_path / "o.txt").write_text("\n".join(rows) + "\n")
    assert object_names(tmp_path / "o.txt") == ["wall", "building"]


def test_scores_against_loops(ade):
    task = get("ade20k", options(data_root=str(ade)))
    meter, rng = task.meter(False), np.random.default_rng(0)
    hit, of_truth, of_guess = np.zeros(21), np.zeros(21), np.zeros(21)
    import torch

    for k in range(3):
        truth = task.eval_data.load(k)[1]
        guess = np.where(rng.random(truth.shape) < 0.6, truth, 4) % 21
        meter.add(k, torch.from_numpy(guess.astype(np.int64)), torch.from_numpy(truth.astype(np.int64)))
        known = truth != 255
        for c in range(21):
            hit[c] += (known & (truth == c) & (guess == c)).sum()
            of_truth[c] += (truth == c).sum()
            of_guess[c] += (known & (guess == c)).sum()
    metrics = task.metrics(meter.scores())
    union = of_truth + of_guess - hit
    assert metrics["miou"] == pytest.approx((hit[union > 0] / union[union > 0]).mean())
    assert metrics["pixel_accuracy"] == pytest.approx(hit.sum() / of_truth.sum())


def no_root(folder):
    shutil.rmtree(folder)


def no_annotations(folder):
    shutil.rmtree(folder / "annotations/training")


def beyond(folder):
    for path in (folder / "annotations/training").iterdir():
        Image.fromarray(np.full((48, 48), 22, np.uint8)).save(path)


def colours(folder):
    for path in (folder / "annotations/training").iterdir():
        Image.new("RGB", (48, 48)).save(path)


def names(folder):
    (folder / "objectInfo150.txt").write_text("wall\nbuilding\n")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (no_root, ["data folder not found", "bad"]),
        (no_annotations, ["label folder not found", "annotations/training"]),
        (beyond, ["label 22 beyond the 21 classes"]),
        (colours, ["RGB", "class indices"]),
        (names, ["objectInfo150.txt", "a row for each class"]),
    ],
)
def test_bad_data(ade, tmp_path, monkeypatch, capfd, spoil, words):
    shutil.copytree(ade, tmp_path / "bad")
    spoil(tmp_path / "bad")
    monkeypatch.chdir(tmp_path)
    argv = ["--task", "ade20k", "--data_root", "bad", "--mask_path", "unet", *SMALL, "--max_iter", "2", "--name", "x"]
    fails(capfd, retrain_train.main, argv, words)
    assert not (tmp_path / "runs" / "x").exists()


@pytest.mark.slow
def test_verbs(ade, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    argv = ["--task", "ade20k", "--data_root", str(ade), *SMALL, "--max_iter", "3", "--mask_path", "unet"]
    assert retrain_train.main([*argv, "--name", "a"]) == 0
    assert retrain_eval.main(["--run", "runs/a", "--out", "out"]) == 0
    said = capfd.readouterr().out
    assert "starfish" in said and "pixel accuracy" in said and "(3 pictures)" in said
    assert np.array(Image.open("out/0006.png")).max() < 21
    assert Path("runs/a/pictures/confusion.png").exists()
