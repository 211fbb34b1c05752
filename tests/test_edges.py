"""Boundary detection: scores against brute force, BSDS500 files, and the verbs on drawn pictures."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from edge_assignment import assignment
from small_config import configured
from sparsemask import UseError
from sparsemask.retrain import eval as retrain_eval
from sparsemask.retrain import train as retrain_train
from sparsemask.synthetic.dense_tasks import boundaries, make_edges, save_annotations
from sparsemask.tasks import LabelledData
from sparsemask.tasks.edges.data import bsds_pairs, consensus, read_annotations
from sparsemask.tasks.edges.scores import EdgeMeter, EdgeScores, picture_counts, precision_recall
from sparsemask.tasks.edges.thinning import thin_edges
from tiny import SMALL, fails


def brute_counts(strength, truths, threshold):
    from skimage.morphology import thin

    edges = thin(strength >= threshold)
    away = 0.0075 * np.hypot(*strength.shape)
    recalled = sum(assignment(edges, truth, away) for truth in truths)
    return edges, recalled


def test_counts_against_the_benchmarks_assignment():
    rng = np.random.default_rng(3)
    shape = (150, 130)  # the tolerance is 1.49 pixels: neighbours, diagonals too
    truths = [rng.random(shape) < 0.02 for _ in range(3)]
    truths[1] |= np.roll(truths[0], 1, 0)
    strength = np.where(np.roll(truths[0], 1, 1), rng.random(shape), 0) + (rng.random(shape) < 0.004) * 0.7
    strength = strength.clip(0, 1)
    thresholds = np.array([0.2, 0.5, 0.8])
    counts = picture_counts(strength, truths, thresholds)
    for k, threshold in enumerate(thresholds):
        edges, recalled = brute_counts(strength, truths, threshold)
        assert counts[k, 0] == recalled
        assert counts[k, 1] == sum(int(t.sum()) for t in truths)
        assert counts[k, 3] == edges.sum()
        # A pixel counts once, however many annotators confirm it: between the best of them and all of them pooled.
        alone = [assignment(edges, t, 0.0075 * np.hypot(*shape)) for t in truths]
        assert max(alone) <= counts[k, 2] <= min(sum(alone), edges.sum())


def test_a_set_is_scored_as_the_benchmark_does():
    thresholds = np.array([0.25, 0.5, 0.75])
    one = np.array([[8, 10, 9, 25], [6, 10, 6, 8], [2, 10, 2, 2]])
    two = np.array([[9, 20, 7, 12], [4, 20, 4, 5], [1, 20, 1, 4]])
    f = lambda c: 2 * (c[2] / c[3]) * (c[0] / c[1]) / (c[2] / c[3] + c[0] / c[1])
    best = sum(max(counts, key=f) for counts in (one, two))
    scores = EdgeScores(thresholds, one + two, best)
    by_threshold = [f(c) for c in one + two]
    assert scores.ods == pytest.approx(max(by_threshold))
    assert scores.threshold == thresholds[int(np.argmax(by_threshold))]
    # Picture one is best at 0.5, picture two at 0.25.
    assert scores.ois == pytest.approx(f(one[1] + two[0]))
    points = sorted(zip(scores.recall, scores.precision, strict=True))
    expected = 0.0
    for wanted in np.arange(101) / 100:
        for (r0, p0), (r1, p1) in itertools.pairwise(points):
            if r0 <= wanted <= r1:
                expected += p0 + (p1 - p0) * (wanted - r0) / (r1 - r0)
                break
    assert scores.ap == pytest.approx(expected / 101)
    # Recall at the precision of one half, between the two thresholds around it.
    (p0, r0), (p1, r1) = ((scores.precision[k], scores.recall[k]) for k in (0, 1))
    assert p0 < 0.5 < p1
    assert scores.r50 == pytest.approx(r0 + (r1 - r0) * (0.5 - p0) / (p1 - p0))


def test_meter_sums_pictures_and_their_best_thresholds():
    rng = np.random.default_rng(0)
    truths = {i: [boundaries(rng.integers(0, 2, (8, 9)).repeat(6, 0).repeat(6, 1)) for _ in range(2)] for i in (0, 1)}
    meter = EdgeMeter(truths.__getitem__)
    expected, best = 0, 0
    for i, maps in truths.items():
        prediction = torch.from_numpy(np.clip(np.mean(maps, 0) * 0.8 + rng.random(maps[0].shape) * 0.2, 0, 1))
        meter.add(i, prediction, torch.zeros(1))
        counts = picture_counts(thin_edges(prediction.numpy()), maps, meter.thresholds)
        expected = expected + counts
        best = best + counts[precision_recall(counts)[2].argmax()]
    scores = meter.scores()
    assert np.array_equal(scores.counts, expected)
    assert precision_recall(scores.best)[2] == precision_recall(best)[2]
    assert 0 < scores.ods <= scores.ois <= 1


def test_nothing_true_and_nothing_predicted_give_numbers():
    blank, some = np.zeros((20, 20)), np.zeros((20, 20))
    some[10, 5:15] = 1.0
    for prediction, truth in itertools.product((blank, some), (blank > 0, some > 0)):
        meter = EdgeMeter(lambda index, t=truth: [t])
        meter.add(0, torch.from_numpy(prediction), torch.zeros(1))
        scores = meter.scores()
        assert np.isfinite([scores.ods, scores.ois, scores.ap, scores.r50]).all()
        assert (scores.ods > 0) == bool(prediction.any() and truth.any())
        if not truth.any():  # the threshold that predicts least is a picture's best where nothing is right
            assert scores.best.tolist() == [0, 0, 0, 0]


def test_consensus_of_annotators():
    marks = np.array([[1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [1, 0, 0, 0, 1], [1, 0, 0, 0, 1]], float)[:, None]
    # All: an edge. Half or fewer: disputed. None: no edge.
    assert consensus(marks).tolist() == [[1, 255, 255, 0, 255]]
    assert consensus(marks[:3]).tolist() == [[1, 1, 255, 0, 255]]


def test_loss_weighs_edges_as_much_as_the_rest():
    from sparsemask.tasks.edges.task import EdgesTask

    rng = np.random.default_rng(1)
    target = torch.from_numpy(rng.choice([0, 0, 0, 0, 1, 255], (3, 7, 6)))
    target[2][target[2] == 1] = 0  # a picture without edges weighs nothing
    output = torch.from_numpy(rng.normal(size=(3, 1, 7, 6)))
    task = EdgesTask(configured(LabelledData))
    loss, weight = 0.0, 0.0
    for logits, truth in zip(output[:, 0].numpy(), target.numpy(), strict=True):
        edges, rest = (truth == 1).sum(), (truth == 0).sum()
        beta = rest / (edges + rest)
        p = 1 / (1 + np.exp(-logits))
        loss -= beta * np.log(p[truth == 1]).sum() + (1 - beta) * np.log(1 - p[truth == 0]).sum()
        weight += beta * edges + (1 - beta) * rest
    assert float(task.loss(output, target)) == pytest.approx(loss, rel=1e-6)
    assert task.count(target) == pytest.approx(weight, rel=1e-6)


@pytest.fixture(scope="module")
def bsds(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("edges") / "BSDS500"
    make_edges(folder / "data", train=5, test=4, size=40)
    return folder


def test_layout_and_annotations(bsds):
    assert [len(bsds_pairs(bsds, s)) for s in ("train", "val", "test", "trainval")] == [5, 2, 4, 7]
    picture, label = bsds_pairs(bsds, "test")[0]
    maps = read_annotations(label)
    assert maps.shape == (3, 40, 40) and set(np.unique(maps)) == {0.0, 1.0}
    Image.fromarray(np.rint(maps.mean(0) * 255).astype(np.uint8)).save(bsds / "one.png")
    # The PNG of the shares says the same as the file of the annotators.
    assert np.array_equal(consensus(read_annotations(bsds / "one.png")), consensus(maps))


def other_struct(path):
    savemat(path, {"GTcls": {"Segmentation": np.ones((4, 4))}})


def torn(path):
    path.write_bytes(path.read_bytes()[:200])


def no_mat(path):
    path.write_bytes(b"\x89PNG not a mat")


def unequal(path):
    save_annotations(path, [np.zeros((40, 40), int), np.zeros((40, 39), int)])


def other_size(path):
    save_annotations(path, [np.zeros((41, 40), int)])


def no_cells(path):
    savemat(path, {"groundTruth": np.empty((1, 0), object)})


def gone(path):
    path.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (other_struct, ["0000.mat", "BSDS500", "groundTruth"]),
        (torn, ["0000.mat", "BSDS500"]),
        (no_mat, ["0000.mat", "BSDS500"]),
        (unequal, ["0000.mat", "one size", "(40, 39)"]),
        (other_size, ["0000.mat", "40x41", "40x40"]),
        (no_cells, ["0000.mat", "one size", "none"]),
        (gone, ["1 of 5 labels absent", "0000.mat"]),
    ],
)
def test_bad_ground_truth(bsds, tmp_path, monkeypatch, capfd, spoil, words):
    import shutil

    shutil.copytree(bsds, tmp_path / "b")
    for path in (tmp_path / "b/data/groundTruth/train").iterdir():
        if path.stem != "0000":
            (tmp_path / "b/data/images/train" / f"{path.stem}.jpg").unlink() if spoil is not gone else None
    spoil(tmp_path / "b/data/groundTruth/train/0000.mat")
    monkeypatch.chdir(tmp_path)
    argv = ["--task", "edges", "--data_root", "b", "--training_list", "train", "--mask_path", "unet", *SMALL]
    fails(capfd, retrain_train.main, [*argv, "--max_iter", "2", "--name", "x"], words)
    assert not (tmp_path / "runs" / "x").exists()


def test_bad_layout(bsds, tmp_path):
    with pytest.raises(UseError, match="no split 'all'; known: train, val"):
        bsds_pairs(bsds, "all")
    with pytest.raises(UseError, match="data folder not found"):
        bsds_pairs(tmp_path / "none", "train")
    with pytest.raises(UseError, match="picture folder not found"):
        bsds_pairs(tmp_path, "train")


def test_verbs(bsds, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    data = ["--task", "edges", "--data_root", str(bsds)]
    argv = [*data, *SMALL, "--max_iter", "4", "--eval_interval", "2", "--mask_path", "sparsemask-voc", "--name", "e"]
    assert retrain_train.main(argv) == 0
    assert retrain_eval.main(["--run", "runs/e", "--out", "out"]) == 0
    said = capfd.readouterr().out
    assert "ODS " in said and "OIS " in said and "(4 pictures)" in said
    for picture, _ in bsds_pairs(bsds, "test"):
        grey = Image.open(Path("out") / f"{picture.stem}.png")
        assert grey.mode == "L" and grey.size == (40, 40)
    assert Path("runs/e/pictures/precision_recall.png").exists()
    assert Path("runs/e/pictures/samples.png").exists()
