"""Grid subsampling: by hand, against a dictionary of voxels, and of clouds that cannot be subsampled."""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest

from sparsemask.errors import UseError
from sparsemask.points import grid_subsample, nearest

ONE = np.array([[0.1, 0.1, 0.1], [0.3, 0.5, 0.1], [-0.2, 0.1, 0.1], [-0.9, 0.9, 0.1], [1.5, 0.1, 0.1]], np.float32)


def test_by_hand_with_negative_coordinates():
    colours = np.array([[0], [1], [0.25], [0.75], [1]], np.float32)
    xyz, means, labels, voxel = grid_subsample(ONE, 1.0, colours, np.array([2, 2, 7, 3, -1]), voxels=True)
    # Voxels [-1, 0), [0, 1) and [1, 2) in x: places and colours are means, the tie 7 : 3 goes to the smaller label.
    np.testing.assert_allclose(xyz, [[-0.55, 0.5, 0.1], [0.2, 0.3, 0.1], [1.5, 0.1, 0.1]], atol=1e-6)
    np.testing.assert_allclose(means, [[0.5], [0.5], [1]], atol=1e-6)
    np.testing.assert_array_equal(labels, [3, 2, -1])
    np.testing.assert_array_equal(voxel, [1, 1, 0, 0, 2])
    assert xyz.dtype == means.dtype == np.float32 and voxel.dtype == np.int32


@pytest.mark.parametrize("size", [0.1, 0.5, 3.0])
@pytest.mark.parametrize("shift", [0.0, -7.3, 1000.0])
def test_against_a_dictionary_of_voxels(size, shift):
    rng = np.random.default_rng(1)
    points = (rng.uniform(-2, 2, (600, 3)) + shift).astype(np.float32)
    features, labels = rng.random((600, 4)).astype(np.float32), rng.integers(0, 5, 600).astype(np.uint8)
    origin = np.floor(points.min(0).astype(np.float64) / size) * size
    members = defaultdict(list)
    for number, place in enumerate(np.floor((points - origin) / size).astype(int)):
        members[tuple(place)].append(number)
    xyz, means, voted, voxel = grid_subsample(points, size, features, labels, voxels=True)
    assert len(xyz) == len(members) and voted.dtype == np.uint8
    for row, key in enumerate(sorted(members)):
        own = members[key]
        assert set(np.flatnonzero(voxel == row)) == set(own)
        np.testing.assert_allclose(xyz[row], points[own].astype(np.float64).mean(0), rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(means[row], features[own].mean(0), atol=1e-6)
        assert voted[row] == np.bincount(labels[own]).argmax()


def test_without_features_and_labels():
    xyz, features, labels = grid_subsample(ONE, 1.0)
    assert len(xyz) == 3 and features is None and labels is None


def test_duplicates_become_one_point():
    xyz, _, labels = grid_subsample(np.repeat(ONE[:1], 50, axis=0), 0.04, labels=np.full(50, 4))
    np.testing.assert_allclose(xyz, ONE[:1])
    np.testing.assert_array_equal(labels, [4])


def test_projection_is_the_nearest_point_of_all():
    points = np.random.default_rng(2).random((400, 3)).astype(np.float32)
    sub = grid_subsample(points, 0.2)[0]
    brute = ((points[:, None].astype(float) - sub[None].astype(float)) ** 2).sum(-1).argmin(1)
    np.testing.assert_array_equal(nearest(sub, points), brute)


@pytest.mark.parametrize(
    "points, size, said",
    [
        (np.empty((0, 3), np.float32), 0.1, "no points"),
        (np.array([[0, 0, 0], [1, np.nan, 0], [np.inf, 0, np.nan]], np.float32), 0.1, "2 of 3 points"),
        (ONE, 0.0, "positive"),
        (ONE, float("nan"), "positive"),
        (ONE * 1e9, 1e-3, "too small"),
    ],
)
def test_what_cannot_be_subsampled(points, size, said):
    with pytest.raises(UseError, match=said):
        grid_subsample(points, size)
