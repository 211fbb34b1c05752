"""From disparities to metres: focal length and baseline, calibration files, depth maps and points.

Calibration files are KITTI's (projection matrices of rectified cameras, in pixels and metres: ``P0:`` to ``P3:`` of
2012, ``P_rect_00:`` to ``P_rect_03:`` of 2015 and raw) and Middlebury's (``cam0=``, ``cam1=``, ``doffs=``, and
``baseline=`` in millimetres).
"""

from __future__ import annotations

import io
import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from sparsemask.errors import UseError
from sparsemask.files import write_bytes
from sparsemask.pictures.files import encoded
from sparsemask.VOC12.lists import read_list

_KITTI = re.compile(r"P(?:_rect_0)?([0-3]):\s*(.+)")
_MIDDLEBURY = re.compile(r"(cam[01]|doffs|baseline)\s*=\s*(.+)")
_FOLDER = re.compile(r"(image|colored)_?0*([0-3])$")
_SUFFIXES = (".png", ".npy")
MILLIMETRES = 65535  # the most that a 16-bit PNG holds


@dataclass(frozen=True)
class Camera:
    """A rectified pair of cameras, of the left picture.

    Attributes:
        focal: focal length in pixels.
        baseline: distance of the cameras in metres.
        centre: principal point (x, y) of the left picture in pixels; None: the picture's middle.
        offset: pixels that are added to disparities: how far the right principal point lies to the right of the left.
    """

    focal: float
    baseline: float
    centre: tuple[float, float] | None = None
    offset: float = 0.0

    def depth(self, disparity: np.ndarray, most: float | None = None) -> np.ndarray:
        """Depth of a disparity map (H, W) in pixels: float32 (H, W) in metres, NaN where there is none.

        Args:
            disparity: 0 or not finite where there is none.
            most: what is farther has none either; None: any.
        """
        moved = np.asarray(disparity, np.float64) + self.offset
        known = np.isfinite(disparity) & (disparity > 0) & (moved > 0)
        metres = np.divide(self.focal * self.baseline, moved, out=np.full(moved.shape, np.nan), where=known)
        if most is not None:
            metres[metres > most] = np.nan
        return metres.astype(np.float32)

    @property
    def farthest(self) -> float:
        """Depth in metres of a disparity of one pixel: what is farther is hardly measured."""
        return self.focal * self.baseline / max(1.0 + self.offset, 1.0)

    def points(self, depth: np.ndarray) -> np.ndarray:
        """Coordinates float32 (H, W, 3) in metres of a depth map: x to the right, y down, z ahead; NaN where it is."""
        height, width = depth.shape
        x, y = self.centre or ((width - 1) / 2, (height - 1) / 2)
        across, down = np.arange(width) - x, np.arange(height) - y
        z = depth.astype(np.float64)
        planes = [z * across[None] / self.focal, z * down[:, None] / self.focal, z]
        return np.stack(planes, axis=-1).astype(np.float32)


def read_calibration(path: str | os.PathLike[str], left: str | os.PathLike[str] = "") -> Camera:
    """The cameras of a calibration file.

    Args:
        path: KITTI's or Middlebury's.
        left: the left picture. Of KITTI's four cameras those of its folder are taken: image_0 (grey; 0 and 1), image_2
            or colored_0 (colour; 2 and 3); else 2 and 3 where there are such.

    Raises:
        UseError: no such file, or none of either kind.
    """
    if not Path(path).is_file():
        raise UseError(f"--calib {path}: no such file")
    kitti: dict[int, np.ndarray] = {}
    middlebury: dict[str, np.ndarray] = {}
    for line in read_list(path):
        if match := _KITTI.fullmatch(line):
            kitti[int(match[1])] = _numbers(match[2], 12, path).reshape(3, 4)
        elif match := _MIDDLEBURY.fullmatch(line):
            count = 9 if match[1].startswith("cam") else 1
            middlebury[match[1]] = _numbers(match[2], count, path)
    if kitti:
        first = _first_camera(left, kitti)
        if first not in kitti or first + 1 not in kitti:
            raise UseError(f"{path}: no matrices of cameras {first} and {first + 1} (P{first}, P{first + 1})")
        one, other = kitti[first], kitti[first + 1]
        focal, baseline = one[0, 0], (one[0, 3] - other[0, 3]) / one[0, 0] if one[0, 0] else 0.0
        centre, offset = (one[0, 2], one[1, 2]), other[0, 2] - one[0, 2]
    elif {"cam0", "baseline"} <= middlebury.keys():
        one = middlebury["cam0"].reshape(3, 3)
        focal, baseline = one[0, 0], middlebury["baseline"][0] / 1000
        centre, offset = (one[0, 2], one[1, 2]), middlebury.get("doffs", np.zeros(1))[0]
    else:
        raise UseError(f"{path}: no calibration of KITTI (P0: ..., P_rect_02: ...) or Middlebury (cam0=, baseline=)")
    return checked(float(focal), float(baseline), path, (float(centre[0]), float(centre[1])), float(offset))


def checked(
    focal: float, baseline: float, what: object, centre: tuple[float, float] | None = None, offset: float = 0.0
) -> Camera:
    """A camera of numbers that can be; UseError, with `what` at its beginning, where they cannot."""
    if not (0 < focal < math.inf and 0 < baseline < math.inf and math.isfinite(offset)):
        raise UseError(f"{what}: focal length {focal:g} px and baseline {baseline:g} m: both must be above 0")
    return Camera(focal, baseline, centre, offset)


def _first_camera(left: str | os.PathLike[str], known: dict[int, np.ndarray]) -> int:
    match = _FOLDER.search(Path(left).absolute().parent.name)
    if match:
        return int(match[2]) + 2 * (match[1] == "colored")
    return 2 if {2, 3} <= known.keys() else 0


def _numbers(text: str, count: int, path: object) -> np.ndarray:
    words = text.replace("[", " ").replace("]", " ").replace(";", " ").replace(",", " ").split()
    try:
        values = np.array([float(word) for word in words])
    except ValueError:
        values = np.empty(0)
    if len(values) != count or not np.isfinite(values).all():
        raise UseError(f"{path}: '{text[:40]}' are not {count} finite numbers")
    return values


def write_depth(path: str | os.PathLike[str], depth: np.ndarray) -> list[str]:
    """Write a depth map (H, W) in metres, NaN where there is none.

    Args:
        path: .png: 16 bits, millimetres, 0 where there is none or it is 65.5 m and more; .npy: float32, metres.
        depth: the map.

    Returns:
        Notes on what the file could not hold.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        buffer = io.BytesIO()
        np.save(buffer, depth.astype(np.float32))
        write_bytes(path, buffer.getvalue())
        return []
    millimetres = np.rint(1000 * depth.astype(np.float64))
    far = millimetres > MILLIMETRES
    values = np.where(np.isfinite(millimetres) & ~far, np.clip(millimetres, 1, MILLIMETRES), 0).astype(np.uint16)
    write_bytes(path, encoded(Image.fromarray(values), "PNG"))
    if not far.any():
        return []
    return [f"{path}: {far.mean():.1%} of the pixels are farther than 65.5 m, which it cannot hold: 0; .npy can"]


def check_depth_name(path: Path) -> Path:
    """The file; UseError where its name is of no kind of depth map."""
    if path.suffix.lower() not in _SUFFIXES:
        raise UseError(f"{path}: depth is written as {' or '.join(_SUFFIXES)}")
    return path


def write_points(path: str | os.PathLike[str], points: np.ndarray, colours: np.ndarray) -> int:
    """Write the points (H, W, 3) that are known with the picture's colours as a binary PLY; returns their number."""
    from sparsemask.tasks.points.clouds.ply import write_ply

    known = np.isfinite(points).all(-1)
    axes, rgb = points[known], colours[known]
    columns = dict(zip("xyz", axes.T, strict=True)) | dict(zip(("red", "green", "blue"), rgb.T, strict=True))
    write_ply(path, columns, comment="metres: x to the right, y down, z ahead of the left camera")
    return int(known.sum())
