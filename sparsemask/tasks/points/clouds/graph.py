"""Who is whose neighbour: exact nearest neighbours within a cloud and between its levels."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from sparsemask.errors import UseError


def make_tree(xyz: np.ndarray) -> cKDTree:
    """KD-tree of points (N, 3), built by sliding midpoints: half the time of medians, and as fast to ask."""
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
        queries: (M, 3); None for `xyz`: then column 0 is the point itself, also among points of the same place.
        k: neighbours; where there are fewer points the nearest one (the point itself) is repeated.

    Returns:
        int32 (M, k), nearest first; distances are Euclidean, of the float32 coordinates without rounding.

    Raises:
        UseError: no points.
    """
    n, own = len(xyz), queries is None
    if n == 0:
        raise UseError("no points: neighbours cannot be found")
    tree = make_tree(xyz) if tree is None else tree
    if own:
        # In the order of the tree's leaves neighbouring queries read the same nodes, which caches reward.
        order = tree.indices
        found = np.empty((n, min(k, n)), np.int32)
        found[order] = nearest(xyz, xyz[order], min(k, n), threads, tree).reshape(n, -1)
        _self_first(found)
    else:
        found = nearest(xyz, queries, min(k, n), threads, tree).reshape(len(queries), -1)
    if n < k:
        found = np.concatenate([found, np.repeat(found[:, :1], k - n, axis=1)], axis=1)
    return found


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
    """The nearest coarser point of every point of `fine`, asked in the order of its leaves; kept points keep it."""
    found = np.empty(fine.n, np.int32)
    found[fine.indices] = nearest(xyz[: coarse.n], xyz[fine.indices], 1, threads, coarse)
    found[: coarse.n] = np.arange(coarse.n, dtype=np.int32)  # among duplicates, too, a point's own value
    return found


def _self_first(found: np.ndarray) -> None:
    """Bring every row's own number to column 0, in place; only points of the same place can stand before it."""
    rows = np.flatnonzero(found[:, 0] != np.arange(len(found)))
    if not len(rows):
        return
    part = found[rows]
    place = np.argmax(part == rows[:, None], axis=1)
    # Among more duplicates than neighbours the point itself may be missing: it takes the place of the last.
    place[part[np.arange(len(rows)), place] != rows] = part.shape[1] - 1
    part[np.arange(len(rows)), place] = part[:, 0]
    part[:, 0] = rows
    found[rows] = part
