"""SemanticKITTI: street scans of 22 sequences, 19 classes (Behley et al., ICCV 2019).

A prepared folder (sequences_0.06) holds, a sequence NN each, velodyne/*.npy (one point a voxel, x, y, z), labels/*.npy
(0 unlabelled, 1 .. 19) and proj/*_proj.npz (projection, and labels where there are any), or the public code's
proj/*_proj.pkl; its pickled trees (KDTree/) are not read.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from sparsemask.containers import read_npy
from sparsemask.coordinates import near_origin
from sparsemask.errors import UseError
from sparsemask.tasks.points.clouds import original
from sparsemask.tasks.points.clouds.cloud import IGNORED, Cloud, CloudFile, read_projection
from sparsemask.tasks.points.clouds.grid import check_points
from sparsemask.tasks.points.clouds.scans import read_scan
from sparsemask.tasks.points.layouts.labels import checked_classes, class_weights

NAMES = ("car", "bicycle", "motorcycle", "truck", "other-vehicle", "person", "bicyclist", "motorcyclist", "road")
NAMES += ("parking", "sidewalk", "other-ground", "building", "fence", "vegetation", "trunk", "terrain", "pole")
NAMES += ("traffic-sign",)
COUNTS = (55437630, 320797, 541736, 2578735, 3274484, 552662, 184064, 78858, 240942562, 17294618, 170599734, 6369672)
COUNTS += (230413074, 101130274, 476491114, 9833174, 129609852, 4506626, 1168181)
WEIGHTS = class_weights(COUNTS)
GRID = 0.06  # metres
SEQUENCES = {
    "train": ("00", "01", "02", "03", "04", "05", "06", "07", "09", "10"),
    "val": ("08",),
    "test": tuple(f"{number:02d}" for number in range(11, 22)),
}
SEQUENCES["all"] = tuple(f"{number:02d}" for number in range(22))

# Raw label -> 0 (unlabelled) or class + 1; what moves counts as what it is.
LEARNING_MAP = {
    **{0: 0, 1: 0, 52: 0, 99: 0, 10: 1, 252: 1, 11: 2, 15: 3, 18: 4, 258: 4, 13: 5, 16: 5, 20: 5, 256: 5, 257: 5},
    **{259: 5, 30: 6, 254: 6, 31: 7, 253: 7, 32: 8, 255: 8, 40: 9, 60: 9, 44: 10, 48: 11, 49: 12, 50: 13, 51: 14},
    **{70: 15, 71: 16, 72: 17, 80: 18, 81: 19},
}
INVERSE_MAP = (0, 10, 11, 15, 18, 20, 30, 31, 32, 40, 44, 48, 49, 50, 51, 70, 71, 72, 80, 81)
_UNKNOWN = 255
_MAPPED = np.full(1 << 16, _UNKNOWN, np.uint8)
_MAPPED[list(LEARNING_MAP)] = list(LEARNING_MAP.values())


def map_labels(raw: np.ndarray, origin: object = "labels") -> np.ndarray:
    """Raw labels (their low 16 bits) to 0 (unlabelled) .. 19, uint8; UseError for a label that is not in the map."""
    mapped = _MAPPED[np.asarray(raw, np.uint32) & 0xFFFF]
    if (mapped == _UNKNOWN).any():
        some = ", ".join(map(str, np.unique(np.asarray(raw)[mapped == _UNKNOWN] & 0xFFFF)[:5]))
        raise UseError(f"{origin}: labels that SemanticKITTI does not know: {some}")
    return mapped


def classes_of(mapped: np.ndarray) -> np.ndarray:
    """Mapped labels 0 .. 19 to the network's classes, int32: 0 .. 18, unlabelled -1."""
    return mapped.astype(np.int32) + IGNORED


def raw_labels(classes: np.ndarray) -> np.ndarray:
    """The network's classes 0 .. 18 (or -1) to raw labels, uint32, as `.label` files hold them."""
    return np.asarray(INVERSE_MAP, np.uint32)[np.asarray(classes) + 1]


def read_labels(path: str | os.PathLike, points: int | None = None) -> np.ndarray:
    """A `.label` file as 0 (unlabelled) .. 19, uint8 (N,).

    Raises:
        UseError: absent, truncated, of another length than `points`, or with labels that are not in the map.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UseError(f"{path}: no such file") from None
    if len(data) % 4 or (points is not None and len(data) // 4 != points):
        of = "" if points is None else f" for {points} points of the scan"
        raise UseError(f"{path}: {len(data)} bytes are {len(data) / 4:g} labels{of}")
    return map_labels(np.frombuffer(data, "<u4"), path)


def sequences_folder(root: str | os.PathLike, name: str) -> Path:
    """The folder `name` that holds the sequences: `root`, or in it, its folder dataset, or beside sequences/.

    Raises:
        UseError: there is none.
    """
    root = Path(root)
    beside = [root.parent / name] if root.name == "sequences" else []
    for folder in (root / name, root / "dataset" / name, *beside, root):
        if any(folder.glob("[0-9][0-9]/velodyne")):
            return folder
    hint = "" if name == "sequences" else "; run sparsemask prepare-points semantickitti FOLDER"
    raise UseError(f"{root}: no folder {name}/NN/velodyne{hint}")


def list_clouds(
    root: str | os.PathLike, part: str = "all", only: Sequence[str] | None = None, grid: float = GRID
) -> list[CloudFile]:
    """Prepared scans by name `NN/scan`, in order.

    Args:
        root: the folder sequences_0.06, or the one above.
        part: "train", "val", "test" or "all".
        only: instead of a part, sequences ("08") or single scans ("08/000000").
        grid: side of the voxels, in metres.

    Raises:
        UseError: nothing prepared, or no scan of that part, or a named one that is not there.
    """
    if part not in SEQUENCES:
        raise UseError(f"unknown part '{part}' of SemanticKITTI; known: {', '.join(SEQUENCES)}")
    folder = sequences_folder(root, f"sequences_{grid:.2f}")
    files: list[CloudFile] = []
    for name in only or SEQUENCES[part]:
        sequence, _, scan = name.partition("/")
        paths = sorted((folder / sequence / "velodyne").glob(f"{scan or '*'}.npy"))
        if only and not paths:
            raise UseError(f"{folder}: no prepared scan {name}")
        files += [CloudFile(f"{sequence}/{path.stem}", path, read_prepared) for path in _visible(paths)]
    if not files:
        raise UseError(f"{folder}: no prepared scans of part '{part}' (sequences {', '.join(SEQUENCES[part])})")
    return files


def read_prepared(file: CloudFile) -> Cloud:
    """Read a scan of `list_clouds`, prepared by this toolkit or by the public code.

    Raises:
        UseError: its files are truncated or do not fit together.
    """
    folder, scan = file.path.parents[1], file.path.stem
    xyz = read_npy(file.path)
    if xyz.ndim != 2 or xyz.shape[1] != 3 or xyz.dtype.kind != "f":
        raise UseError(f"{file.path}: expected (N, 3) coordinates, found {xyz.shape} of {xyz.dtype}")
    check_points(xyz, file.path)
    xyz, offset = near_origin(xyz)
    cloud = Cloud(file.name, xyz, offset=offset)
    labels = folder / "labels" / file.path.name
    if labels.is_file():
        cloud.labels = _classes(read_npy(labels).reshape(-1), labels)
        if len(cloud.labels) != len(cloud):
            raise UseError(f"{labels}: {len(cloud.labels)} labels for {len(cloud)} points")
    cloud.projection, mapped = read_projection(folder / "proj" / scan)
    raw = folder.parents[1] / "sequences" / folder.name / "labels" / f"{scan}.label"
    if mapped is not None:
        cloud.full_labels = _classes(mapped, f"{scan}_proj")
    elif cloud.projection is not None and raw.is_file():  # the public code's projections come without labels
        cloud.full_labels = classes_of(read_labels(raw, len(cloud.projection)))
    return cloud


def prepared_file(path: str | os.PathLike) -> CloudFile | None:
    """The prepared scan that a file is, NN/velodyne/SCAN.npy; None for another."""
    path = Path(path).absolute()
    if path.suffix != ".npy" or path.parent.name != "velodyne" or not path.parents[1].name.isdigit():
        return None
    return CloudFile(f"{path.parents[1].name}/{path.stem}", path, read_prepared)


def original_path(file: CloudFile) -> Path:
    """Where a prepared scan's original lies, if it lies beside."""
    sequence = file.path.parents[1]
    return sequence.parents[1] / "sequences" / sequence.name / "velodyne" / f"{file.path.stem}.bin"


def check_original(file: CloudFile) -> None:
    """UseError unless predictions for a prepared scan can be carried back to all its points."""
    stem = file.path.parents[1] / "proj" / file.path.stem
    hint = "sparsemask prepare-points semantickitti FOLDER --project makes it"
    original.check_original(f"{file.path}", stem, original_path(file), hint)


def all_points(file: CloudFile, cloud: Cloud, values: np.ndarray) -> np.ndarray:
    """Values of all points of a scan from those of its prepared points; see :func:`original.carry_back`."""
    return original.carry_back(values, cloud, lambda: read_scan(original_path(file)))


def _classes(mapped: np.ndarray, origin: object) -> np.ndarray:
    return classes_of(checked_classes(mapped, len(NAMES) + 1, origin))


def _visible(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if not path.name.startswith(".")]
