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
from sparsemask.tasks.points.clouds import las
from sparsemask.tasks.points.clouds.graph import make_tree
from sparsemask.tasks.points.clouds.grid import check_points
from sparsemask.tasks.points.clouds.ply import read_ply
from sparsemask.tasks.points.clouds.scans import read_scan

IGNORED = -1  # the label that neither losses nor metrics count
_COARSE = 0.005  # metres between coordinates that a file can tell apart, above which a line says so


@dataclass
class Cloud:
    """A cloud, usually after grid subsampling, with its projection to the original points.

    Attributes:
        xyz: float32 (N, 3), metres, less `offset`.
        colours: float32 (N, 3) in [0, 1], or None.
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
        """KD-tree of the points, built on first use."""
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
        """Read it; UseError where a file is absent, truncated, or does not fit the others."""
        return self.reader(self)


def read_cloud(path: str | os.PathLike, columns: int | None = None) -> Cloud:
    """Read a cloud: `.bin` (float32 x, y, z, remission), `.ply`, `.npy`, `.npz`, `.las` or `.laz`.

    A `.ply` has x, y, z, and optionally red, green, blue and class (or label). An `.npy` is (N, 3 or more): x, y, z and
    colours in the next three of six columns or more. An `.npz` has xyz (or points), and optionally colours (or colors)
    and labels. Of LAS and LAZ coordinates, colours and classification are read (:mod:`.las`). The range of colours
    follows from their type: integers from 0 to their type's maximum, floats in [0, 1], or up to 255 where one exceeds
    1. Labels are not changed. Georeferenced coordinates are moved near the origin before
    they become float32 (:func:`~sparsemask.coordinates.near_origin`); `offset` is the translation.

    Args:
        path: the file.
        columns: of a `.bin`: values of a point (default: 4, of `.pcd.bin` 5).

    Raises:
        UseError: the file is absent, truncated or of another kind, has no points, or values that are not finite.
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
    for title, values in (("colours", colours), ("labels", labels)):
        if values is not None and len(values) != len(xyz):
            raise UseError(f"{path}: {len(values)} {title} for {len(xyz)} points")
    if colours is not None and not colours.min() >= 0:
        raise UseError(f"{path}: colours that are negative or not finite")
    if labels is not None:
        labels = labels.astype(np.int32)
    return Cloud(path.stem, xyz, None if colours is None else unit_colours(colours), labels, offset=offset)


def has_projection(stem: Path) -> bool:
    """Whether there is a file that :func:`read_projection` reads."""
    return any(stem.with_name(f"{stem.name}_proj.{kind}").is_file() for kind in ("npz", "pkl"))


def read_projection(stem: Path) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Projection and labels of the original points, from STEM_proj.npz or the public code's STEM_proj.pkl.

    Returns:
        projection int32 (N_original,), labels (N_original,) as stored; None for what is absent.
    """
    ours, public = stem.with_name(f"{stem.name}_proj.npz"), stem.with_name(f"{stem.name}_proj.pkl")
    if ours.is_file():
        arrays = read_npz(ours)
        projection, labels = arrays.get("projection"), arrays.get("labels")
    elif public.is_file():
        projection, labels = [*(array.reshape(-1) for array in read_arrays(public)), None, None][:2]
    else:
        return None, None
    if projection is None or projection.ndim != 1 or projection.dtype.kind not in "iu":
        raise UseError(f"{ours if ours.is_file() else public}: no projection in it")
    if labels is not None and len(labels) != len(projection):
        raise UseError(f"{stem}: {len(labels)} labels beside a projection of {len(projection)} points")
    return projection.astype(np.int32), labels


def unit_colours(colours: np.ndarray) -> np.ndarray:
    """Colours as float32 in [0, 1]: integers over their type's end, floats that exceed 1 over 255."""
    if colours.dtype.kind in "iu":
        return (colours / np.float32(255 if colours.dtype.itemsize != 2 else 65535)).astype(np.float32)
    colours = colours.astype(np.float32)
    return colours / np.float32(255) if colours.size and colours.max() > 1 else colours


def columns(table: dict[str, np.ndarray], names: str, path: object) -> np.ndarray | None:
    """Columns (N, C) of properties of a PLY file; None where it has none of them, UseError where it has only some."""
    properties = [table[name] for name in names.split() if name in table]
    if properties and len(properties) < len(names.split()):
        raise UseError(f"{path}: it has some of {names}, but not all")
    return np.stack(properties, axis=1) if properties else None


def _from_ply(path: Path) -> tuple:
    table = read_ply(path)
    xyz = columns(table, "x y z", path)
    if xyz is None:
        raise UseError(f"{path}: its vertices have no x, y, z")
    return xyz, columns(table, "red green blue", path), table.get("class", table.get("label"))


def _from_npy(path: Path) -> tuple:
    table = read_npy(path)
    if table.ndim != 2 or table.shape[1] < 3 or table.dtype.kind not in "iuf":
        raise UseError(f"{path}: expected (N, 3) numbers or more columns, found {table.shape} of {table.dtype}")
    return table[:, :3], table[:, 3:6] if table.shape[1] >= 6 else None, None


def _from_npz(path: Path) -> tuple:
    arrays = read_npz(path)
    xyz, colours = arrays.get("xyz", arrays.get("points")), arrays.get("colours", arrays.get("colors"))
    for values in (xyz, colours):
        if values is not None and (values.ndim != 2 or values.shape[1] < 3 or values.dtype.kind not in "iuf"):
            raise UseError(f"{path}: expected (N, 3) numbers, found {values.shape} of {values.dtype}")
    if xyz is None:
        raise UseError(f"{path}: no array 'xyz' in it, but {', '.join(arrays) or 'nothing'}")
    labels = arrays.get("labels")
    return xyz[:, :3], None if colours is None else colours[:, :3], None if labels is None else labels.reshape(-1)


_READERS = {
    ".bin": read_scan,
    ".ply": _from_ply,
    ".npy": _from_npy,
    ".npz": _from_npz,
    **dict.fromkeys(las.SUFFIXES, las.read_las),
}
SUFFIXES = tuple(_READERS)
