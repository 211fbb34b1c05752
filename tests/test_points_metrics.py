"""Scores of points: by hand, with absent classes and ignored points; prediction files pooled; the weighted loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from small_clouds import options
from sparsemask.errors import UseError
from sparsemask.tasks.points.clouds.ply import read_ply, write_ply
from sparsemask.tasks.points.layouts import s3dis, semantickitti
from sparsemask.tasks.points.s3dis import S3DISTask
from sparsemask.tasks.points.scores import PointScores, pooled, pooled_text, score_text, write_pair
from sparsemask.tasks.points.semantickitti import SemanticKITTITask
from sparsemask.tasks.segmentation.scores import confusion

CLASSES = [f"class{n}" for n in range(13)]


def test_scores_of_three_classes_by_hand():
    scores = PointScores(np.array([[6, 2, 0], [1, 7, 0], [1, 1, 2]]))
    assert scores.oa == 15 / 20
    assert scores.recall.tolist() == [6 / 8, 7 / 8, 2 / 4]
    assert scores.macc == pytest.approx((6 / 8 + 7 / 8 + 2 / 4) / 3)
    assert scores.iou.tolist() == [6 / 10, 7 / 11, 2 / 4]
    assert scores.miou == pytest.approx((6 / 10 + 7 / 11 + 2 / 4) / 3)
    assert scores.metrics == {"miou": scores.miou, "oa": scores.oa, "macc": scores.macc}


def test_a_class_that_does_not_occur_has_no_score_even_if_it_is_predicted():
    scores = PointScores(np.array([[6, 2, 1], [1, 7, 0], [0, 0, 0]]))
    assert np.isnan(scores.iou[2]) and np.isnan(scores.recall[2])
    # As published: the absent class takes the mean of the others, which leaves the mean as it is.
    published = np.diag(scores.matrix) / (scores.matrix.sum(0) + scores.matrix.sum(1) - np.diag(scores.matrix) + 1e-6)
    published[2] = published[:2].mean()
    assert scores.miou == pytest.approx(published.mean(), abs=1e-6)
    assert scores.macc == pytest.approx((6 / 9 + 7 / 8) / 2)
    said = score_text(scores, ["a", "b", "c"], "x")
    assert "left out of the means: c" in said and "OA 0.7647" in said and "17 points" in said


def test_nothing_labelled_is_no_score():
    scores = PointScores(np.zeros((3, 3), np.int64))
    assert all(np.isnan(v) for v in scores.metrics.values())


def test_ignored_points_are_counted_nowhere():
    truth, found = torch.tensor([0, 1, -1, -1, 2]), torch.tensor([0, 2, 0, 1, 2])
    assert confusion(found, truth, 3).tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]


def test_the_loss_is_weighted_and_ignores():
    for kind, weights in ((S3DISTask, s3dis.WEIGHTS), (SemanticKITTITask, semantickitti.WEIGHTS)):
        task = kind(options())
        torch.manual_seed(0)
        logits, target = torch.randn(2, len(weights), 50), torch.randint(-1, len(weights), (2, 50))
        counted = target >= 0
        expected = F.cross_entropy(logits, target, torch.from_numpy(weights), ignore_index=-1)
        assert task.loss(logits, target) / task.count(target) == pytest.approx(float(expected), rel=1e-5)
        # What stands at an ignored point changes nothing.
        logits[~counted[:, None].expand_as(logits)] += 100
        assert task.loss(logits, target) / task.count(target) == pytest.approx(float(expected), rel=1e-5)
        assert task.count(torch.full((1, 4), -1)) == 0


def test_predictions_of_several_folders_are_pooled(tmp_path):
    rng, matrix = np.random.default_rng(0), np.zeros((13, 13), np.int64)
    for number, room in enumerate(["Area_1_office_1", "Area_1_hall_2", "Area_2_office_1"]):
        truth, found = rng.integers(-1, 13, 400), rng.integers(0, 13, 400)
        matrix += confusion(torch.from_numpy(found), torch.from_numpy(truth), 13).numpy()
        write_pair(tmp_path / f"area{number % 2}" / f"{room}.ply", found, truth)
    columns = read_ply(tmp_path / "area0" / "Area_1_office_1.ply")
    assert list(columns) == ["pred", "label"] and columns["pred"].dtype == np.uint8
    scores, rooms = pooled([tmp_path / "area0", tmp_path / "area1"], 13)
    assert np.array_equal(scores.matrix, matrix) and rooms == {1: 2, 2: 1}
    said = pooled_text([tmp_path], CLASSES, {1: 44, 2: 1})
    assert "rooms of area 1: 2, area 2: 1" in said and "not there: area 1: 42 of 44" in said


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (lambda folder: None, "no predictions"),
        (lambda folder: write_ply(folder / "Area_1_a.ply", {"x": np.zeros(3, np.float32)}), "no properties pred"),
        (lambda folder: write_pair(folder / "Area_1_a.ply", np.array([14]), np.array([1])), "more than 13"),
        (
            lambda folder: [write_pair(folder / d / "Area_1_a.ply", np.array([1]), np.array([1])) for d in "ab"],
            "predicted twice",
        ),
    ],
    ids=["nothing", "no classes", "too many", "twice"],
)
def test_predictions_that_are_none(tmp_path, write, words):
    write(tmp_path)
    with pytest.raises(UseError, match=words):
        pooled([tmp_path], 13)
