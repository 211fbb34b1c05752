"""Neighbour indices: exact nearest neighbours within a cloud and between its levels; and an order good for caches."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from sparsemask.errors import UseError

_BITS = 10  # of a cell's number along an axis, see :func:`shell_order`


def make_tree(xyz: np.ndarray) -> cKDTree:
    """KD-tree of points (N, 3), built by sliding midpoints: half the build time of medians, equal query time."""
    return cKDTree(xyz, balanced_tree=False)


def nearest(
    xyz: np.ndarray, queries: np.ndarray, k: int = 1, threads: int = 1, tree: cKDTree | None = None
) -> np.ndarray:
    """The k nearest of `xyz` to every query, nearest first.

    Args:
        xyz: (N, 3), at least k points.
        queries: (M, 3).
        threads: of the search; -1 for all cores.
        tree: that of `xyz`, where there is one.

    Returns:
        indices, int32 (M,) for k = 1, else (M, k).
    """
    tree = make_tree(xyz) if tree is None else tree
    return tree.query(queries, k, workers=threads)[1].astype(np.int32)


def knn(
    xyz: np.ndarray, queries: np.ndarray | None, k: int, threads: int = 1, tree: cKDTree | None = None
) -> np.ndarray:
    """The k nearest points of `xyz` to every query, or to the points themselves.

    Args:
        xyz: (N, 3) finite coordinates.
        queries: (M, 3); None for `xyz`: then column 0 is the point itself, also among points at the same location.
        k: neighbours; where there are fewer points the nearest one (the point itself) is repeated.

    Returns:
        int32 (M, k), nearest first; distances are Euclidean, of the float32 coordinates without rounding.

    Raises:
        UseError: no points.
    """
    n, of_itself = len(xyz), queries is None
    if n == 0:
        raise UseError("no points: neighbours cannot be found")
    tree = make_tree(xyz) if tree is None else tree
    if of_itself:
        # In the order of the tree's leaves neighbouring queries read the same nodes, which caches reward.
        order = tree.indices
        neighbours = np.empty((n, min(k, n)), np.int32)
        neighbours[order] = nearest(xyz, xyz[order], min(k, n), threads, tree).reshape(n, -1)
        _self_first(neighbours)
    else:
        neighbours = nearest(xyz, queries, min(k, n), threads, tree).reshape(len(queries), -1)
    if n < k:
        neighbours = np.concatenate([neighbours, np.repeat(neighbours[:, :1], k - n, axis=1)], axis=1)
    return neighbours


def build_graph(
    xyz: np.ndarray, k: int, ratio: int, levels: int, threads: int = 1
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Neighbours and upsampling of a cloud whose level l is its first N // ratio**l points.

    Args:
        xyz: (N, 3), shuffled, so that its first points are a random part of it.
        k: neighbours of a point, itself among them.
        ratio: points of a level over those of the next.
        levels: number of levels, at least 1.
        threads: of the searches; -1 for all cores (1 inside a data loader's worker).

    Returns:
        neighbours, fine to coarse: int32 (N_l, k), column 0 the point itself; a level of fewer than k points repeats
        it. upsample, coarse to fine: int32 (N_l,), of every point of a level the nearest one of the next coarser.

    Raises:
        UseError: too few points for that many levels.
    """
    sizes = [len(xyz) // ratio**level for level in range(levels)]
    if not sizes or sizes[-1] < 1:
        raise UseError(f"{len(xyz)} points are too few for {levels} levels by {ratio}: give {ratio ** (levels - 1)}")
    trees = [make_tree(xyz[:size]) for size in sizes]
    neighbours = [knn(xyz[:size], None, k, threads, tree) for size, tree in zip(sizes, trees, strict=True)]
    upsample = [_coarser(trees[level], xyz, trees[level + 1], threads) for level in reversed(range(levels - 1))]
    return neighbours, upsample


def _coarser(fine: cKDTree, xyz: np.ndarray, coarse: cKDTree, threads: int) -> np.ndarray:
    """Index of the nearest coarser point of every point of `fine`; points of the coarser level are their own."""
    neighbours = np.empty(fine.n, np.int32)
    neighbours[fine.indices] = nearest(xyz[: coarse.n], xyz[fine.indices], 1, threads, coarse)
    neighbours[: coarse.n] = np.arange(coarse.n, dtype=np.int32)  # among duplicates, too, a point's own value
    return neighbours


def _self_first(neighbours: np.ndarray) -> None:
    """Move every row's own index to column 0, in place; only points at the same location can precede it."""
    rows = np.flatnonzero(neighbours[:, 0] != np.arange(len(neighbours)))
    if not len(rows):
        return
    wrong_rows = neighbours[rows]
    column = np.argmax(wrong_rows == rows[:, None], axis=1)
    # Among more duplicates than neighbours the point itself may be missing: it takes the place of the last.
    column[wrong_rows[np.arange(len(rows)), column] != rows] = wrong_rows.shape[1] - 1
    wrong_rows[np.arange(len(rows)), column] = wrong_rows[:, 0]
    wrong_rows[:, 0] = rows
    neighbours[rows] = wrong_rows


def shell_order(xyz: np.ndarray, ratio: int, levels: int) -> np.ndarray:
    """A permutation (N,) that sorts by location within every level's own points, and so changes no level.

    Level l is the first N // ratio**l points; its own points are those that no coarser level has.

    Args:
        xyz: (N, 3), shuffled.
        ratio: points of a level over those of the next.
        levels: number of levels.
    """
    codes = _morton(xyz)
    bounds = [0, *sorted(len(xyz) // ratio**level for level in range(levels))]
    parts = [a + np.argsort(codes[a:b], kind="stable") for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
    return np.concatenate(parts)


def _morton(xyz: np.ndarray) -> np.ndarray:
    """Places along a Z-shaped curve through a grid of 1024 cells an axis."""
    low = xyz.min(0)
    extent = float((xyz.max(0) - low).max()) or 1.0
    cells = ((xyz - low) * ((1 << _BITS) - 1) / extent).astype(np.uint32)
    code = np.zeros(len(xyz), np.uint32)
    for axis in range(3):
        code |= _spread(cells[:, axis]) << np.uint32(axis)
    return code


def _spread(x: np.ndarray) -> np.ndarray:
    """Two zero bits between any two bits of 10-bit numbers."""
    for shift, mask in ((16, 0x030000FF), (8, 0x0300F00F), (4, 0x030C30C3), (2, 0x09249249)):
        x = (x | (x << np.uint32(shift))) & np.uint32(mask)
    return x
