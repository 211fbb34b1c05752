"""Thinning edge maps before they are scored: non-maximum suppression across the edge.

As is usual in edge evaluation (Dollár and Zitnick 2015, "Fast Edge Detection Using Structured Forests", and those
who evaluate with its tools): the direction of an edge comes from the second derivatives of the smoothed map, and a
pixel stays where no neighbour one step across the edge is larger.
"""

from __future__ import annotations

import numpy as np
from scipy.ndimage import correlate1d, map_coordinates

BORDER = 5  # pixels at the image's rim over which edges fade: what the padding makes of them is no edge
_SLACK = 1.01  # a pixel may be this much smaller than its neighbour: plateaus must not vanish


def thin_edges(strength: np.ndarray, border: int = BORDER) -> np.ndarray:
    """Edge strengths (H, W) in [0, 1] with all but the ridges set to 0; float64."""
    strength = np.asarray(strength, np.float64)
    smooth = _triangle(strength, 1)
    angle = orientation(smooth)
    rows, columns = np.mgrid[: strength.shape[0], : strength.shape[1]].astype(np.float64)
    keep = np.ones(strength.shape, bool)
    for side in (-1, 1):
        neighbour = rows + side * np.sin(angle), columns + side * np.cos(angle)
        keep &= smooth * _SLACK >= map_coordinates(smooth, neighbour, order=1, mode="nearest")
    return np.where(keep, smooth, 0.0) * _fade(strength.shape, border)


def orientation(strength: np.ndarray) -> np.ndarray:
    """Direction across the edge at every pixel of (H, W), in radians from the columns' axis: where it bends most."""
    down, across = _gradient(_triangle(strength, 4))
    down_down, down_across = _gradient(down)
    across_across = _gradient(across)[1]
    # The axis of the Hessian's smallest eigenvalue; the angle of the largest one is half of this arctangent.
    return 0.5 * np.arctan2(2 * down_across, across_across - down_down) + np.pi / 2


def _gradient(field: np.ndarray) -> list[np.ndarray]:
    """Central differences down and across; 0 along an axis of one pixel."""
    return [np.gradient(field, axis=k) if field.shape[k] > 1 else np.zeros_like(field) for k in (0, 1)]


def _triangle(field: np.ndarray, radius: int) -> np.ndarray:
    """Smooth with a triangle of weights `radius` pixels to each side; the image is mirrored at its rim."""
    weights = np.concatenate([np.arange(1, radius + 2), np.arange(radius, 0, -1)]) / (radius + 1) ** 2
    for axis in (0, 1):
        field = correlate1d(field, weights, axis, mode="reflect")
    return field


def _fade(size: tuple[int, int], border: int) -> np.ndarray:
    """(H, W) factors that fall linearly to 0 over the last `border` pixels to the rim."""
    from_rim = [np.minimum(np.arange(n), np.arange(n)[::-1]) for n in size]
    down, across = (
        np.minimum(distance / max(border, 1), 1.0) if border else np.ones(len(distance)) for distance in from_rim
    )
    return down[:, None] * across
