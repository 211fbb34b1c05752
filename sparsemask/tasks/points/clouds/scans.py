"""Headerless scans: `.bin` files of float32 rows that begin with x, y, z.

Nothing in such a file says how many values a point has: KITTI and SemanticKITTI have four (remission), nuScenes
(`.pcd.bin`) five (intensity, ring). By another number every value is taken for another; what then cannot be is refused.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.tasks.points.clouds.grid import check_points

MOST = 16  # values of a point
_FARTHEST = 1e7  # metres; northings of maps stay below it
_BRIGHTEST = 65535  # remission: 0 to 1, 255 or 65535
_ALIKE = 0.1  # distance of two columns that hold the same mixture
_APART = 0.4  # distance of columns that hold something each
_CHANCE = 8.0  # over the root of the number of points: distance of columns that are drawn alike
_SOME = 200_000  # points that are looked at


def usual_columns(path: str | os.PathLike) -> int:
    """Values of a point by the name of a file: 5 of `.pcd.bin` (nuScenes), else 4."""
    return 5 if Path(path).name.lower().endswith(".pcd.bin") else 4


def read_scan(path: str | os.PathLike, columns: int | None = None) -> np.ndarray:
    """x, y, z of a LiDAR scan, float32 (N, 3), from a `.bin` of float32 rows.

    Args:
        path: the file.
        columns: values of a point; None: by its name, and what they cannot be is refused.

    Raises:
        UseError: absent, empty, no whole number of points (truncated), coordinates that are not finite or beyond
            10 000 km, or values that another number of columns explains.
    """
    path = Path(path)
    if columns is not None and not 3 <= columns <= MOST:
        raise UseError(f"{path}: {columns} values a point: 3 to {MOST} are read, x, y, z first")
    told, columns = columns is not None, columns or usual_columns(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UseError(f"{path}: no such file") from None
    if len(data) % (4 * columns):
        better = _fitting(np.frombuffer(data[: len(data) // 4 * 4], "<f4"), len(data), columns)
        hint = f"it looks like {better}: --bin_columns {better}" if better else "truncated?"
        raise UseError(f"{path}: {len(data)} bytes are no whole number of points ({columns} float32 each): {hint}")
    values = np.frombuffer(data, "<f4")
    table = values.reshape(-1, columns)
    xyz = table[:, :3].astype(np.float32)
    check_points(xyz, path)
    problem = _impossible(table, told)
    if problem or not told:
        better = _fitting(values, len(data), columns) if problem or _mixed(table) else None
        if problem or better:
            problem = problem or "its columns all hold the same mixture of values"
            hint = f"it looks like {better} (--bin_columns {better})" if better else "--bin_columns N says how many"
            raise UseError(f"{path}: read as {columns} float32 a point, {problem}: {hint}")
    return xyz


def _impossible(table: np.ndarray, told: bool) -> str:
    """What these rows cannot be, in words; who names the layout himself may have any remission."""
    farthest = float(np.abs(table[:, :3]).max())
    if farthest > _FARTHEST:
        return f"coordinates reach {farthest:.3g} m"
    if table.shape[1] > 3 and not told:
        low, high = float(table[:, 3].min()), float(table[:, 3].max())
        if not (low >= 0 and high <= _BRIGHTEST):
            return f"remission would be {low:.3g} to {high:.3g}, which must be 0 to 1, 255 or {_BRIGHTEST}"
    return ""


def _mixed(table: np.ndarray) -> bool:
    """Whether the fourth column holds what one of the coordinates holds, as it does where rows are cut wrongly."""
    if table.shape[1] < 4 or len(table) < 16:
        return False
    apart = _distances(table)
    return bool(apart[3, :3].min() < _ALIKE)


def _fitting(values: np.ndarray, size: int, but: int) -> int | None:
    """The number of columns by which values differ most from column to column, of those that `size` bytes allow."""
    found = {}
    for columns in range(3, 9):
        if size % (4 * columns) == 0 and size >= 64 * columns:
            with np.errstate(all="ignore"):
                # Of few points columns lie apart by chance.
                chance = _CHANCE / (len(values) / columns) ** 0.5
                found[columns] = max(0.0, float(_distances(values.reshape(-1, columns)).max()) - chance)
    # A mixture lies less apart than what it is made of. Multiples of the right number part the columns as well as it
    # does: of such the smallest.
    least = max(_APART, 1.5 * found.pop(but, 0.0), 0.8 * max(found.values(), default=0.0))
    return min((columns for columns, apart in found.items() if apart >= least), default=None)


def _distances(table: np.ndarray) -> np.ndarray:
    """(C, C): how far columns lie apart, by their means and deviations."""
    table = table[:_SOME].astype(np.float64)
    mean, deviation = table.mean(0), table.std(0) + 1e-9
    shift = np.abs(mean[:, None] - mean) / np.maximum(deviation[:, None], deviation)
    return np.nan_to_num(shift + np.abs(np.log(deviation[:, None] / deviation)), nan=0.0, posinf=0.0)
