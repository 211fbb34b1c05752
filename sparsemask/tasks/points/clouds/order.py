"""In what order points lie in memory: near ones near each other, which caches reward."""

from __future__ import annotations

import numpy as np

_BITS = 10


def shell_order(xyz: np.ndarray, ratio: int, levels: int) -> np.ndarray:
    """A permutation (N,) that sorts by place within every level's own points, and so changes no level.

    Level l is the first N // ratio**l points; its own points are those that no coarser level has.

    Args:
        xyz: (N, 3), shuffled.
        ratio, levels: as for :func:`sparsemask.tasks.points.clouds.graph.build_graph`.
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
