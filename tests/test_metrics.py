"""Segmentation scores against brute force."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsemask.tasks.metrics import SegmentationScores, confusion


def test_confusion_against_loops():
    rng = np.random.default_rng(0)
    truth, guess = rng.integers(0, 6, (4, 9, 8)), rng.integers(0, 5, (4, 9, 8))
    truth[0, :3] = 255
    expected = np.zeros((5, 5), int)
    for t, p in zip(truth.ravel(), guess.ravel(), strict=True):
        if t < 5:  # 5 and 255 are beyond the classes: ignored
            expected[t, p] += 1
    found = confusion(torch.from_numpy(guess), torch.from_numpy(truth), 5)
    assert np.array_equal(found.numpy(), expected)
    iou = [expected[c, c] / (expected[c].sum() + expected[:, c].sum() - expected[c, c]) for c in range(5)]
    assert SegmentationScores(expected).iou == pytest.approx(iou)
    assert SegmentationScores(expected).miou == pytest.approx(np.mean(iou))


def test_absent_classes_are_named_and_do_not_spoil_the_mean():
    matrix = np.array([[8, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 10]])
    scores = SegmentationScores(matrix)
    # Class 1 occurs nowhere: out of the mean. Class 2 is predicted but never true: it counts as 0.
    assert np.isnan(scores.iou[1])
    assert scores.iou[2] == 0
    assert scores.miou == pytest.approx((0.8 + 0 + 1) / 3)
    assert scores.absent(["a", "b", "c", "d"]) == ["b", "c"]
    assert scores.pixel_accuracy == pytest.approx(0.9)


def test_nothing_labelled_gives_nan_not_a_number():
    scores = SegmentationScores(np.zeros((3, 3), int))
    assert np.isnan(scores.miou)
    assert np.isnan(scores.pixel_accuracy)
