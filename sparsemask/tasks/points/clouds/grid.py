"""Grid subsampling: one point a voxel."""

from __future__ import annotations

import numpy as np

from sparsemask.errors import UseError

_MOST = 2**62  # voxels that an int64 key can tell apart


def grid_subsample(
    xyz: np.ndarray,
    size: float,
    features: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    *,
    voxels: bool = False,
) -> tuple[np.ndarray | None, ...]:
    """One point a voxel: mean location, mean features, and the label of most points (the smallest among equals).

    Voxels are floor((p - o) / size) with o = floor(min / size) * size; they come out sorted by x, then y, then z.

    Args:
        xyz: (N, 3) finite coordinates, in metres.
        size: side of a voxel, in metres.
        features: (N, C), or None.
        labels: (N,) integers, -1 allowed, or None.
        voxels: also return every point's voxel.

    Returns:
        xyz (M, 3), float64 where `xyz` is and else float32, features float32 (M, C) or None, labels of their own type
        (M,) or None; with `voxels` also int32 (N,), the number of the output point that each point went into.

    Raises:
        UseError: no points, coordinates that are not finite, a size that is not positive or far too small.
    """
    if not size > 0:
        raise UseError(f"a voxel's side must be positive, not {size}")
    check_points(xyz)
    order, starts, inverse = _sort_by_voxel(xyz, size)
    count = np.diff(starts, append=len(xyz))
    origin = xyz.min(0)
    # Sums of distances from the corner: means keep float32's precision far from the origin, too.
    means = _means(xyz - origin, inverse, count) + origin
    coloured = None if features is None else _means(features, inverse, count).astype(np.float32)
    voted = None if labels is None else _majority(np.asarray(labels), inverse, count)
    out = (means.astype(np.float64 if xyz.dtype == np.float64 else np.float32), coloured, voted)
    return (*out, inverse) if voxels else out


def check_points(xyz: np.ndarray, origin: object = "the cloud") -> None:
    """UseError unless `xyz` has points and all their coordinates are finite; says how many are not."""
    if len(xyz) == 0:
        raise UseError(f"{origin}: no points")
    with np.errstate(invalid="ignore"):
        total = xyz.sum(dtype=np.float64)
    if not np.isfinite(total) and (bad := int((~np.isfinite(xyz)).any(axis=1).sum())):
        raise UseError(f"{origin}: {bad} of {len(xyz)} points have coordinates that are not finite (NaN or infinite)")


def _sort_by_voxel(xyz: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Order of the points by voxel, where each voxel starts in it, and every point's voxel."""
    origin = np.floor(xyz.min(0).astype(np.float64) / size) * size
    extent = np.floor((xyz.max(0) - origin) / size) + 1
    if extent.prod() >= _MOST:
        raise UseError(f"voxels of {size:g} m are too small for a cloud of {' x '.join(f'{e:.3g}' for e in extent)}")
    key = np.zeros(len(xyz), np.int64)
    for axis in range(3):  # the cast floors: nothing lies below the origin
        key = key * int(extent[axis]) + ((xyz[:, axis] - origin[axis]) / size).astype(np.int64)
    order = np.argsort(key)
    ordered = key[order]
    first = np.empty(len(xyz), bool)
    first[0] = True
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    inverse = np.empty(len(xyz), np.int32)
    inverse[order] = np.cumsum(first) - 1
    return order, np.flatnonzero(first), inverse


def _means(values: np.ndarray, voxel: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Mean of every column over each voxel's points, float64 (M, C)."""
    return np.stack([np.bincount(voxel, column, len(count)) for column in values.T], axis=1) / count[:, None]


def _majority(labels: np.ndarray, voxel: np.ndarray, count: np.ndarray) -> np.ndarray:
    """The label of most of each voxel's points, by sorting (voxel, label) and taking the longest run."""
    low = int(labels.min())
    span = int(labels.max()) - low + 1
    pairs, times = np.unique(voxel.astype(np.int64) * span + (labels.astype(np.int64) - low), return_counts=True)
    owner = pairs // span
    # Sorted by owner, then by how often, then by the smaller label: the first of each owner is its label.
    best = np.lexsort((pairs, -times, owner))
    winners = best[np.searchsorted(owner[best], np.arange(len(count)))]
    return (pairs[winners] % span + low).astype(labels.dtype)
