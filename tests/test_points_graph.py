"""Neighbours and levels of point clouds, against distances computed one by one."""

from __future__ import annotations

import numpy as np
import pytest

from sparsemask.errors import UseError
from sparsemask.points import build_graph, knn, nearest
from sparsemask.tasks.points.clouds.graph import make_tree


def cloud(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 2, (n, 3)).astype(np.float32)


def distances(queries: np.ndarray, xyz: np.ndarray) -> np.ndarray:
    return ((queries[:, None].astype(np.float64) - xyz[None].astype(np.float64)) ** 2).sum(-1)


@pytest.mark.parametrize("n, k", [(200, 16), (17, 16), (16, 16), (50, 1)])
@pytest.mark.parametrize("threads", [1, -1])
def test_neighbours_are_the_nearest_of_all(n, k, threads):
    xyz = cloud(n)
    found = knn(xyz, None, k, threads)
    assert found.dtype == np.int32 and found.shape == (n, k)
    np.testing.assert_array_equal(found, np.argsort(distances(xyz, xyz), axis=1)[:, :k])
    np.testing.assert_array_equal(found[:, 0], np.arange(n))


def test_other_queries_and_a_tree_that_is_there():
    xyz, queries = cloud(90), cloud(40, 1)
    expected = np.argsort(distances(queries, xyz), axis=1)
    np.testing.assert_array_equal(knn(xyz, queries, 5, tree=make_tree(xyz)), expected[:, :5])
    np.testing.assert_array_equal(nearest(xyz, queries), expected[:, 0])


def test_fewer_points_than_neighbours_repeat_the_point_itself():
    found = knn(cloud(5), None, 8)
    np.testing.assert_array_equal(found[:, 5:], np.arange(5)[:, None].repeat(3, 1))
    # Nobody is listed twice but the point itself.
    assert all(len(set(row[:5])) == 5 for row in found)


@pytest.mark.parametrize("copies", [2, 10, 40])
def test_a_point_comes_first_among_its_duplicates(copies):
    xyz = np.tile(cloud(6), (copies, 1))
    found = knn(xyz, None, 8)
    np.testing.assert_array_equal(found[:, 0], np.arange(len(xyz)))
    assert all(len(set(row)) == 8 for row in found)
    # Swapping columns loses none of the nearest: the distances are those of the sorted list.
    mine = np.take_along_axis(distances(xyz, xyz), found, 1)
    np.testing.assert_array_equal(mine, np.sort(distances(xyz, xyz), axis=1)[:, :8])


def test_levels_are_prefixes_and_upsampling_goes_from_coarse_to_fine():
    xyz = cloud(130)
    neighbours, upsample = build_graph(xyz, 6, 4, 3)
    assert [one.shape for one in neighbours] == [(130, 6), (32, 6), (8, 6)]
    assert [one.shape for one in upsample] == [(32,), (130,)]
    for size, one in zip((130, 32, 8), neighbours, strict=True):
        np.testing.assert_array_equal(one, knn(xyz[:size], None, 6))
    for one, fine, coarse in zip(upsample, (32, 130), (8, 32), strict=True):
        np.testing.assert_array_equal(one, distances(xyz[:fine], xyz[:coarse]).argmin(1))
        assert one.dtype == np.int32


def test_a_kept_point_is_its_own_nearest_coarser_one_among_duplicates():
    neighbours, (coarse, fine) = build_graph(np.tile(cloud(4), (16, 1)), 4, 4, 3)
    np.testing.assert_array_equal(fine[:16], np.arange(16))
    np.testing.assert_array_equal(coarse[:4], np.arange(4))


@pytest.mark.parametrize("n, levels", [(0, 1), (15, 3), (100, 0)])
def test_too_few_points(n, levels):
    with pytest.raises(UseError, match="too few"):
        build_graph(cloud(n), 4, 4, levels)


def test_no_points_have_no_neighbours():
    with pytest.raises(UseError, match="no points"):
        knn(cloud(0), cloud(3), 2)
