"""Point clouds as pixels: two cameras, splats with a depth buffer, and shading by depth, all in NumPy.

Shading is eye-dome lighting (C. Boucheny, Interactive scientific visualization of large datasets, 2009): a pixel is
darker the more its neighbours stand in front of it. It needs no normals, which clouds do not have.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from sparsemask.coordinates import near_origin
from sparsemask.errors import UseError, choose

VIEWS = ("bird", "perspective")
_AZIMUTH, _ELEVATION = np.radians(-118.0), np.radians(38.0)  # from where the perspective looks at the cloud
_TANGENT = np.tan(np.radians(40.0) / 2)  # of half its field of view, up and down
_ROOF, _WALL = 0.12, 0.04  # shares of a room's height and width that are cut away
_FAR, _WIDE = 3.0, 0.02  # percent of points that may fall off each side: of scans, dense at their middle, and of others
_FINER = 2  # drawn that much larger, then reduced: smooth edges
_DOME, _REACH = 26.0, 2  # strength of the shading, pixels between a point and those that shade it


@dataclass(frozen=True)
class Projected:
    """Points on a picture of `size` (height, width) pixels; what lies outside or behind is left to be clipped."""

    across: np.ndarray
    down: np.ndarray
    depth: np.ndarray
    """Metres from the camera; not positive behind it."""
    zoom: np.ndarray
    """Pixels that a metre takes there."""
    size: tuple[int, int]


def checked(xyz: np.ndarray) -> np.ndarray:
    """The cloud as float32 (N, 3), near the origin; UseError for other shapes, no points, what is no number."""
    xyz = np.asarray(xyz)
    xyz = xyz if xyz.dtype == np.float32 else xyz.astype(np.float64)
    if xyz.ndim != 2 or xyz.shape[1] != 3 or not len(xyz):
        raise UseError(f"a cloud must have the shape (N, 3), not {xyz.shape}")
    bad = int((~np.isfinite(xyz).all(1)).sum())
    if bad:
        raise UseError(f"{bad} of {len(xyz)} points have coordinates that are no numbers")
    return near_origin(xyz)[0]


def roof(xyz: np.ndarray) -> float | None:
    """The height in metres above which a room's ceiling hides what is inside; None of what is no room.

    A room has a ceiling: most columns of half a metre end near the top of the cloud.
    """
    z = xyz[:, 2]
    low, top = np.percentile(z, (0.5, 99.8))
    columns, number = np.unique(np.floor(xyz[:, :2] / 0.5).astype(np.int64), axis=0, return_inverse=True)
    high = np.full(len(columns), -np.inf, np.float32)
    np.maximum.at(high, number.ravel(), z)
    height = top - _ROOF * (top - low)
    return float(height) if top - low >= 1.5 and (high > height).mean() >= 0.6 else None


def laid_open(xyz: np.ndarray, view: str) -> np.ndarray:
    """bool (N,): the points to draw so that the inside of a room is seen; all of what is no room.

    The ceiling is left out, and in perspective the walls before the onlooker too.
    """
    height = roof(xyz)
    if height is None:
        return np.ones(len(xyz), bool)
    shown = xyz[:, 2] < height
    if view == "perspective":
        sides, corner = np.percentile(xyz[shown, :2], (0.2, 99.8), axis=0)
        shown &= (xyz[:, :2] > sides + _WALL * (corner - sides)).all(1)  # the camera stands towards -x and -y
    return shown if shown.any() else np.ones(len(xyz), bool)


def aspect(xyz: np.ndarray, view: str) -> float:
    """Width over height of a picture that suits the cloud."""
    choose(view, VIEWS, "view")
    if view == "perspective":
        return 1.45
    across, up = np.maximum(np.ptp(whole_box(xyz), axis=0)[:2], 1e-3)
    return float(np.clip(across / up, 0.75, 1.7))


def project(xyz: np.ndarray, view: str, size: tuple[int, int]) -> Projected:
    """Where points float32 (N, 3) fall on a picture of `size` (height, width): from above, or from beside and above."""
    choose(view, VIEWS, "view")
    high, wide = size
    low, top = whole_box(xyz)
    if view == "bird":
        middle, span = (low + top)[:2] / 2, np.maximum((top - low)[:2], 1e-3) * 1.04
        zoom = min(wide / span[0], high / span[1])
        away = xyz[:, :2] - middle
        # As from a camera high above, so that depth differences shade as in the other view.
        depth = float(max(span)) + np.maximum(top[2] - xyz[:, 2], 0)
        return Projected(
            wide / 2 + zoom * away[:, 0], high / 2 - zoom * away[:, 1], depth, np.full(len(xyz), zoom), size
        )
    towards = np.array(
        [np.cos(_ELEVATION) * np.cos(_AZIMUTH), np.cos(_ELEVATION) * np.sin(_AZIMUTH), np.sin(_ELEVATION)]
    )
    right = np.array([-np.sin(_AZIMUTH), np.cos(_AZIMUTH), 0.0])
    stray = _stray(xyz)
    away = xyz - (np.median(xyz, axis=0) if stray == _FAR else (low + top) / 2)
    x, y, near = away @ right, away @ np.cross(towards, right), away @ towards
    for last in (False, False, False, False, True):
        reach = np.maximum(np.abs(x) * high / wide, np.abs(y)) / _TANGENT + near
        # Above 0 where all points are at one location, which would otherwise lie in the camera and not be drawn.
        distance = max(1.03 * np.percentile(reach, 100 - 4 * stray), 0.01)
        if last or stray == _FAR:
            break
        for one in (x, y):  # what is seen moves to the middle of the picture, so that the camera can come nearer
            one -= distance * np.percentile(one / np.maximum(distance - near, 1e-6), (stray, 100 - stray)).mean()
    depth = distance - near
    zoom = high / 2 / _TANGENT / np.maximum(depth, 1e-6)
    return Projected(wide / 2 + zoom * x, high / 2 - zoom * y, depth, zoom, size)


class Scene:
    """A cloud seen by one camera, to be painted once or often.

    Args:
        xyz: float32 (N, 3), metres, z up.
        view: 'bird' (from above, x to the right) or 'perspective'.
        size: (height, width) of the pictures in pixels.
    """

    def __init__(self, xyz: np.ndarray, view: str, size: tuple[int, int]):
        self._size = size
        self._places = project(xyz, view, (size[0] * _FINER, size[1] * _FINER))
        self._spacing = spacing(xyz)
        self._by_height = _by_height(xyz[:, 2])
        self._whole = self._seen(np.ones(len(xyz), bool), 1.0)

    def picture(self, rgb: np.ndarray, front: np.ndarray | None = None, larger: float = 1.0) -> np.ndarray:
        """The cloud on white, uint8 (height, width, 3).

        Args:
            rgb: uint8 (N, 3).
            front: bool (N,), points that are drawn again over all others, `larger` times as large.
        """
        drawn = np.full((*self._places.size, 3), 255, np.float32)
        passes = [self._whole] + ([self._seen(front, larger)] if front is not None and front.any() else [])
        for there, point, light in passes:
            drawn[there] = rgb[point] * light[:, None]
        small = drawn.reshape(self._size[0], _FINER, self._size[1], _FINER, 3).mean((1, 3))
        return np.clip(np.rint(small), 0, 255).astype(np.uint8)

    def _seen(self, shown: np.ndarray, larger: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Which pixels show a point, bool (H, W); of those, the point and its light."""
        point, depth = _nearest(self._places, shown, self._spacing * larger, _FINER * larger)
        there = point >= 0
        light = _dome(np.where(there, depth, np.inf))[there] * self._by_height[point[there]]
        return there, point[there], light.astype(np.float32)


def _nearest(places: Projected, shown: np.ndarray, metres: float, pixels: float) -> tuple[np.ndarray, np.ndarray]:
    """For every pixel the point that is nearest there (-1: none), and its depth; a splat is that many metres wide."""
    high, wide = places.size
    inside = shown & (places.depth > 1e-3)
    inside &= (places.across > -9) & (places.across < wide + 9) & (places.down > -9) & (places.down < high + 9)
    number = np.flatnonzero(inside)
    sides = np.clip(np.rint(metres * places.zoom[number]), max(1, round(1.7 * pixels)), 6 * pixels).astype(int)
    pixel, owner = [], []
    for side in np.unique(sides):
        chosen = number[sides == side]
        corner = [np.rint(part[chosen] - side / 2).astype(np.int64) for part in (places.down, places.across)]
        steps = np.arange(side)
        row = (corner[0][:, None, None] + steps[:, None]).repeat(side, 2).ravel()
        column = (corner[1][:, None, None] + steps).repeat(side, 1).ravel()
        good = (row >= 0) & (row < high) & (column >= 0) & (column < wide)
        pixel.append((row * wide + column)[good])
        owner.append(chosen.repeat(side * side)[good])
    point = np.full(high * wide, -1, np.int64)
    if pixel:
        pixel, owner = np.concatenate(pixel), np.concatenate(owner)
        order = np.argsort(-places.depth[owner], kind="stable")  # of values written to one pixel the last remains
        point[pixel[order]] = owner[order]
    point = point.reshape(high, wide)
    return point, places.depth[point]


def _dome(depth: np.ndarray) -> np.ndarray:
    """Light (H, W) from 0 to 1 by depth (H, W), infinite where there is nothing."""
    log = np.log2(depth)
    total = np.zeros_like(log)
    padded = np.pad(log, _REACH, constant_values=np.inf)
    for step in ((0, 1), (0, -1), (1, 0), (-1, 0), (1, 1), (1, -1), (-1, 1), (-1, -1)):
        down, across = (_REACH + _REACH * part for part in step)
        other = padded[down : down + log.shape[0], across : across + log.shape[1]]
        with np.errstate(invalid="ignore"):  # nothing beside nothing
            total += np.minimum(np.nan_to_num(np.maximum(log - other, 0), nan=0.0, posinf=0.0), 0.05)
    return np.maximum(np.exp(-_DOME * total / 8), 0.35)


def _by_height(z: np.ndarray) -> np.ndarray:
    """Light (N,), a little less towards the ground."""
    low, top = np.percentile(z, (1, 99))
    return (0.84 + 0.16 * np.clip((z - low) / max(top - low, 1e-6), 0, 1)).astype(np.float32)


def _stray(xyz: np.ndarray) -> float:
    """Percent of points on each side that need not be in the picture."""
    radius = np.linalg.norm(xyz[:, :2] - np.median(xyz[:, :2], axis=0), axis=1)
    half, most = np.percentile(radius, (50, 99))
    return _FAR if most > 3 * half else _WIDE


def whole_box(xyz: np.ndarray) -> np.ndarray:
    """(2, 3): the corners of a box around all but a few far points."""
    stray = _stray(xyz)
    return np.percentile(xyz, (stray, 100 - stray), axis=0)


def spacing(xyz: np.ndarray) -> float:
    """Metres that a splat should cover, for surfaces without holes: by the neighbours of a few points."""
    some = xyz[:: max(1, len(xyz) // 1500)]
    distance = cKDTree(xyz, compact_nodes=False, balanced_tree=False).query(some, k=min(4, len(xyz)))[0]
    return 1.6 * float(np.median(distance.reshape(len(some), -1)[:, -1]))
