"""Clouds in memory, and the readers of files that hold one."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from sparsemask.containers import read_npy, read_npz
from sparsemask.coordinates import near_origin, rounding
from sparsemask.errors import UseError, choose, say
from sparsemask.safe_pickle import read_arrays
from sparsemask.tasks.points.clouds.graph import make_tree
from sparsemask.tasks.points.clouds.grid import check_points
from sparsemask.tasks.points.clouds.ply import read_ply
from sparsemask.tasks.points.clouds.scans import read_scan

IGNORED = -1  # the label that neither losses nor metrics count
_COARSE = 0.005  # metres between coordinates that a file can tell apart, above which a line says so


@dataclass
class Cloud:
    """A cloud, mostly one that grid subsampling has thinned out, and its way back to all points.

    xyz: float32 (N, 3), metres, less `offset`. colours: float32 (N, 3) in [0, 1], or None.
    labels: int32 (N,), classes of the network, -1 ignored, or None.
    projection: int32 (N_original,), the nearest point of this cloud to every original one, or None.
    full_labels: int32 (N_original,), the labels of the original points, or None.
    offset: float64 (3,), metres: what was subtracted from georeferenced coordinates, which float32 cannot hold.
    """

    name: str
    xyz: np.ndarray
    colours: np.ndarray | None = None
    labels: np.ndarray | None = None
    projection: np.ndarray | None = None
    full_labels: np.ndarray | None = None
    offset: np.ndarray = field(default_factory=lambda: np.zeros(3))

    def __len__(self) -> int:
        return len(self.xyz)

    @property
    def coordinates(self) -> np.ndarray:
        """(N, 3) as the file has them: float32, or float64 where there is an offset."""
        return self.xyz + self.offset if self.offset.any() else self.xyz

    @cached_property
    def tree(self) -> cKDTree:
        """The points' KD-tree, built when first asked for; it is never read from a file."""
        return make_tree(self.xyz)

    def __getstate__(self) -> dict:
        # A tree takes longer to send to another process than to build there.
        return {name: value for name, value in self.__dict__.items() if name != "tree"}


@dataclass(frozen=True)
class CloudFile:
    """A prepared cloud that is read when needed: its name and what reads it."""

    name: str
    path: Path
    reader: Callable[[CloudFile], Cloud]

    def read(self) -> Cloud:
        """Read it; UseError where a file is absent, torn, or does not fit the others."""
        return self.reader(self)


def read_cloud(path: str | os.PathLike, columns: int | None = None) -> Cloud:
    """Anybody's cloud: `.bin` (float32 x, y, z, remission), `.ply`, `.npy` or `.npz`.

    A `.ply` has x, y, z; red, green, blue and class (or label) if it likes. An `.npy` is (N, 3 or more): x, y, z, and
    of six columns or more the next three are colours. An `.npz` has xyz (or points), and colours (or colors) and labels
    if it likes. Colours are taken by type: integers from 0 to their type's end, floats in [0, 1], or to 255 where one
    exceeds 1. Labels are taken as they stand. Georeferenced coordinates are moved near the origin before they become
    float32 (:func:`~sparsemask.coordinates.near_origin`); `offset` says by how much.

    Args:
        path: the file.
        columns: of a `.bin`: values of a point (default: 4, of `.pcd.bin` 5).

    Raises:
        UseError: absent, torn, of another kind, without points, or with coordinates that are not finite.
    """
    path = Path(path)
    choose(path.suffix.lower(), _READERS, "kind of cloud")
    if not path.is_file():
        raise UseError(f"{path}: no such file")
    if path.suffix.lower() == ".bin":
        xyz, colours, labels = read_scan(path, columns), None, None
    elif columns is not None:
        raise UseError(f"{path}: columns are named for .bin files only; this kind says what it holds")
    else:
        xyz, colours, labels = _READERS[path.suffix.lower()](path)
    check_points(xyz, path)
    if (step := rounding(xyz)) > _COARSE:
        say(f"note: {path}: {xyz.dtype} coordinates so far from the origin are rounded to {step:.2g} m", sys.stderr)
    xyz, offset = near_origin(xyz)
    for what, values in (("colours", colours), ("labels", labels)):
        if values is not None and len(values) != len(xyz):
            raise UseError(f"{path}: {len(values)} {what} for {len(xyz)} points")
    if colours is not None and not colours.min() >= 0:
        raise UseError(f"{path}: colours that are negative or not finite")
    if labels is not None:
        labels = labels.astype(np.int32)
    return Cloud(path.stem, xyz, None if colours is None else unit_colours(colours), labels, offset=offset)


def read_array(path: str | os.PathLike) -> np.ndarray:
    """An `.npy` file's array of numbers; UseError where it is absent, torn, or holds objects."""
    return read_npy(path)


def has_projection(stem: Path) -> bool:
    """Whether there is a file that :func:`read_projection` reads."""
    return any(stem.with_name(f"{stem.name}_proj.{kind}").is_file() for kind in ("npz", "pkl"))


def read_projection(stem: Path) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Projection and labels of the original points, from STEM_proj.npz (ours) or STEM_proj.pkl (the public code's).

    Returns:
        projection int32 (N_original,), labels (N_original,) as they stand; None for what is not there.
    """
    ours, public = stem.with_name(f"{stem.name}_proj.npz"), stem.with_name(f"{stem.name}_proj.pkl")
    if ours.is_file():
        found = read_archive(ours)
        projection, labels = found.get("projection"), found.get("labels")
    elif public.is_file():
        projection, labels = [*(part.reshape(-1) for part in read_arrays(public)), None, None][:2]
    else:
        return None, None
    if projection is None or projection.ndim != 1 or projection.dtype.kind not in "iu":
        raise UseError(f"{ours if ours.is_file() else public}: no projection in it")
    if labels is not None and len(labels) != len(projection):
        raise UseError(f"{stem}: {len(labels)} labels beside a projection of {len(projection)} points")
    return projection.astype(np.int32), labels


def read_archive(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file; UseError where it is torn or holds objects."""
    return read_npz(path)


def unit_colours(colours: np.ndarray) -> np.ndarray:
    """Colours as float32 in [0, 1]: integers over their type's end, floats that exceed 1 over 255."""
    if colours.dtype.kind in "iu":
        return (colours / np.float32(255 if colours.dtype.itemsize != 2 else 65535)).astype(np.float32)
    colours = colours.astype(np.float32)
    return colours / np.float32(255) if colours.size and colours.max() > 1 else colours


def columns(table: dict[str, np.ndarray], names: str, path: object) -> np.ndarray | None:
    """Properties of a PLY file side by side, (N, C); None where the file has none of them, UseError where some."""
    found = [table[name] for name in names.split() if name in table]
    if found and len(found) < len(names.split()):
        raise UseError(f"{path}: it has some of {names}, but not all")
    return np.stack(found, axis=1) if found else None


def _from_ply(path: Path) -> tuple:
    table = read_ply(path)
    xyz = columns(table, "x y z", path)
    if xyz is None:
        raise UseError(f"{path}: its vertices have no x, y, z")
    return xyz, columns(table, "red green blue", path), table.get("class", table.get("label"))


def _from_npy(path: Path) -> tuple:
    table = read_array(path)
    if table.ndim != 2 or table.shape[1] < 3 or table.dtype.kind not in "iuf":
        raise UseError(f"{path}: expected (N, 3) numbers or more columns, found {table.shape} of {table.dtype}")
    return table[:, :3], table[:, 3:6] if table.shape[1] >= 6 else None, None


def _from_npz(path: Path) -> tuple:
    found = read_archive(path)
    xyz, colours = found.get("xyz", found.get("points")), found.get("colours", found.get("colors"))
    for values in (xyz, colours):
        if values is not None and (values.ndim != 2 or values.shape[1] < 3 or values.dtype.kind not in "iuf"):
            raise UseError(f"{path}: expected (N, 3) numbers, found {values.shape} of {values.dtype}")
    if xyz is None:
        raise UseError(f"{path}: no array 'xyz' in it, but {', '.join(found) or 'nothing'}")
    labels = found.get("labels")
    return xyz[:, :3], None if colours is None else colours[:, :3], None if labels is None else labels.reshape(-1)


_READERS = {".bin": read_scan, ".ply": _from_ply, ".npy": _from_npy, ".npz": _from_npz}
