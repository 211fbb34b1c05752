"""Coordinates near the origin: float32 holds a millimetre up to 10 km only, georeferenced clouds lie at 5 000 km."""

from __future__ import annotations

import numpy as np

_FAR = 1000.0  # metres from the origin, of a cloud's middle; scans and rooms in their own frame are nearer
_STEP = 12.0  # metres; a multiple of usual voxels (0.04, 0.05, 0.06, ...), so that these fall as they did


def near_origin(xyz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates as float32 without loss, and what was subtracted from them before, in float64.

    Only clouds whose middle (the median) is 1 km or more from the origin are moved, by multiples of 12 m: of others
    the origin may mean something, as the sensor's place does.

    Args:
        xyz: (N, 3) finite numbers in metres, N > 0.

    Returns:
        xyz float32 (N, 3), offset float64 (3,).
    """
    middle = np.median(xyz, axis=0).astype(np.float64)
    offset = np.zeros(3)
    if np.abs(middle).max() >= _FAR:
        offset = _STEP * np.round(middle / _STEP)
        xyz = xyz - offset  # float64, whatever the type was
    return np.ascontiguousarray(xyz, np.float32), offset


def rounding(xyz: np.ndarray) -> float:
    """Metres between neighbouring numbers of the type that coordinates (N, 3) came in, where these are largest."""
    if xyz.dtype.kind != "f":
        return 0.0
    return float(np.spacing(np.abs(xyz).max()))
