"""Segmentation scores against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsemask.tasks.segmentation.scores import ConfusionMeter, SegmentationScores, class_table, confusion


def test_confusion_against_loops():
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 6, (4, 9, 8)), rng.integers(0, 5, (4, 9, 8))
    truth[0, :3], truth[1, :2] = 255, -1
    expected = np.zeros((5, 5), int)
    for t, p in zip(truth.ravel(), guess.ravel(), strict=True):
        if 0 <= t < 5:  # -1, 5 and 255 are no classes: ignored
            expected[t, p] += 1
    found = confusion(torch.from_numpy(guess), torch.from_numpy(truth), 5)
    assert np.array_equal(found.numpy(), expected)
    iou = [expected[c, c] / (expected[c].sum() + expected[:, c].sum() - expected[c, c]) for c in range(5)]
    assert SegmentationScores(expected).iou == pytest.approx(iou)
    assert SegmentationScores(expected).miou == pytest.approx(np.mean(iou))


def test_absent_classes_are_named_and_do_not_spoil_the_mean():
    matrix = np.array([[8, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 10]])
    scores = SegmentationScores(matrix)
    with np.errstate(all="raise"):  # not by dividing 0 by 0, which warns
        assert np.isnan(scores.iou).tolist() == [False, True, False, False]
    with pytest.raises(ValueError):
        scores.absent(["a", "b", "c"])
    # Class 1 occurs nowhere: out of the mean. Class 2 is predicted but never true: it counts as 0.
    assert np.isnan(scores.iou[1])
    assert scores.iou[2] == 0
    assert scores.miou == pytest.approx((0.8 + 0 + 1) / 3)
    assert scores.absent(["a", "b", "c", "d"]) == ["b", "c"]
    assert scores.pixel_accuracy == pytest.approx(0.9)


def test_one_pixel_makes_a_class_present():
    scores = SegmentationScores(np.array([[1, 0], [0, 0]]))
    assert scores.present.tolist() == [True, False] and scores.absent(["a", "b"]) == ["b"]


def test_nothing_labelled_gives_nan_not_a_number():
    scores = SegmentationScores(np.zeros((3, 3), int))
    assert np.isnan(scores.miou)
    assert np.isnan(scores.pixel_accuracy)


def test_the_meter_sums_images():
    meter = ConfusionMeter(2)
    meter.add(0, torch.tensor([0, 1]), torch.tensor([0, 0]))
    meter.add(1, torch.tensor([1, 1]), torch.tensor([1, 255]))
    assert meter.scores().matrix.tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize(
    ("matrix", "rows"),
    [
        # IoU 3/4 and 1/2, recall 3/4 and 1, shares of five pixels.
        ([[3, 1], [0, 1]], [["a", "0.750", "0.750", "80.0"], ["b", "0.500", "1.000", "20.0"]]),
        # One labelled pixel is all of them, and a class that occurs nowhere has no IoU.
        ([[1, 0], [0, 0]], [["a", "1.000", "1.000", "100.0"], ["b", "-", "-", "0.0"]]),
        # Predicted but never true: IoU 0, no recall.
        ([[0, 1], [0, 0]], [["a", "0.000", "0.000", "100.0"], ["b", "0.000", "-", "0.0"]]),
        # Nothing labelled: shares are 0, not a division by 0.
        ([[0, 0], [0, 0]], [["a", "-", "-", "0.0"], ["b", "-", "-", "0.0"]]),
    ],
)
def test_class_table_by_hand(matrix, rows):
    lines = class_table(SegmentationScores(np.array(matrix)), ["a", "b"]).splitlines()
    assert [line.split() for line in lines if line.split()[0] in ("a", "b")] == rows
