"""Matching boundary pixels against brute force, and thinning edge maps to their ridges."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from edge_assignment import assignment
from sparsemask.tasks.edges.matching import match, tolerance
from sparsemask.tasks.edges.thinning import orientation, thin_edges


def exhaustive(prediction: np.ndarray, truth: np.ndarray, distance: float) -> int:
    """Most pairs of any one-to-one choice, all choices tried."""
    p, t = np.argwhere(prediction).tolist(), np.argwhere(truth).tolist()
    near = [[k for k, b in enumerate(t) if np.hypot(a[0] - b[0], a[1] - b[1]) <= distance] for a in p]
    choices = itertools.product(*[[None, *one] for one in near])
    return max(len(used) for one in choices if len(used := [c for c in one if c is not None]) == len(set(used)))


@pytest.mark.parametrize("seed", range(12))
def test_matching_is_as_large_as_any(seed):
    rng = np.random.default_rng(seed)
    tiny = rng.random((2, 5, 6)) < 0.17
    away = float(rng.choice([0.9, 1.0, 1.5, 2.3]))
    found, true = match(*tiny, away)
    assert found.sum() == true.sum() == exhaustive(*tiny, away)
    # Only pixels that were there can be matched.
    assert not (found & ~tiny[0]).any() and not (true & ~tiny[1]).any()
    dense = rng.random((2, 30, 40)) < rng.choice([0.05, 0.3, 0.6], (2, 1, 1))
    away = float(rng.choice([1.0, 2.0, 3.2]))
    found, true = match(*dense, away)
    assert found.sum() == true.sum() == assignment(*dense, away)


def test_matching_takes_the_nearest_of_two_lines():
    truth = np.zeros((20, 30), bool)
    truth[10] = True
    prediction = np.zeros_like(truth)
    prediction[[10, 12]] = True
    found, _ = match(prediction, truth, 3.0)
    # Both lines could serve; the benchmark's costs pick the exact one, so the other is a false alarm.
    assert found[10].all() and not found[12].any()


@pytest.mark.parametrize("which", ["prediction", "truth", "both"])
def test_nothing_to_match(which):
    some = np.eye(6, dtype=bool)
    prediction, truth = some & (which == "truth"), some & (which == "prediction")
    found, true = match(prediction, truth, 2.0)
    assert not found.any() and not true.any()


def test_tolerance_is_a_share_of_the_diagonal():
    assert tolerance((321, 481)) == pytest.approx(4.337, abs=1e-3)  # BSDS500's pictures


@pytest.mark.parametrize("degrees", [0, 30, 45, 75, 90, 120, 160])
def test_thinning_keeps_the_ridge_of_a_blurred_line(degrees):
    angle = np.deg2rad(degrees)
    rows, columns = np.mgrid[-30:31, -30:31]
    across = columns * np.cos(angle) + rows * np.sin(angle)
    strength = np.exp(-((across / 3) ** 2))
    inner = np.s_[12:-12, 12:-12]
    off = np.abs((orientation(strength)[inner] - angle + np.pi / 2) % np.pi - np.pi / 2)[np.abs(across[inner]) < 1]
    assert off.max() < np.deg2rad(3)
    kept = thin_edges(strength)[inner] > 0.3
    # What stays lies within a pixel of the line, and the line is whole: a pixel in every row or every column.
    assert np.abs(across[inner][kept]).max() <= 1.0
    assert kept.any(1).all() if abs(np.cos(angle)) > 0.7 else kept.any(0).all()


def test_thinning_fades_at_the_rim_and_takes_any_size():
    strength = np.ones((12, 9))
    thin = thin_edges(strength)
    assert (thin[0] == 0).all() and (thin[:, -1] == 0).all() and thin[5, 4] == pytest.approx(0.8)
    for shape in ((1, 1), (1, 7), (2, 3)):
        assert thin_edges(np.ones(shape)).shape == shape
