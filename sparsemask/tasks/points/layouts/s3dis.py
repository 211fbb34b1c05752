"""S3DIS: indoor rooms of six areas, 13 classes (Armeni et al., CVPR 2016; version 1.2, aligned).

A prepared folder (S3DIS_ply) holds, a room each, original/Area_a_room.ply (x, y, z in metres from the room's corner;
red, green, blue; class), sub_0.040/Area_a_room.ply (one point a voxel, colours in [0, 1]) and beside that
Area_a_room_proj.npz (projection, labels), or the public code's Area_a_room_proj.pkl; its pickled trees are not read.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sparsemask.errors import UseError
from sparsemask.tasks.points.clouds.cloud import Cloud, CloudFile, read_cloud, read_projection
from sparsemask.tasks.points.layouts.labels import checked_classes, class_weights

NAMES = ("ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase")
NAMES += ("board", "clutter")
COUNTS = (3370714, 2856755, 4919229, 318158, 375640, 478001, 974733, 650464, 791496, 88727, 1284130, 229758, 2272837)
WEIGHTS = class_weights(COUNTS)
ROOMS = {1: 44, 2: 40, 3: 23, 4: 49, 5: 68, 6: 48}  # of each area, as published
GRID = 0.04  # metres
PARTS = ("train", "val", "all")
_NAME = re.compile(r"Area_(\d+)_\w+")


def class_of(stem: str) -> int:
    """Class of an annotation file `<class>_<n>`; a class that is not among the 13 (stairs) is clutter."""
    name = stem.partition("_")[0]
    return NAMES.index(name) if name in NAMES else NAMES.index("clutter")


def area_of(name: str) -> int:
    """Area of a room `Area_a_room`; UseError for another name."""
    found = _NAME.fullmatch(name)
    if not found:
        raise UseError(f"'{name}' is no room's name: expected Area_<number>_<room>")
    return int(found[1])


def sub_folder(root: str | os.PathLike, grid: float = GRID) -> Path:
    """The folder of thinned-out rooms: in `root`, or in S3DIS_ply inside or beside it; UseError without."""
    name = f"sub_{grid:.3f}"
    for base in (Path(root), Path(root) / "S3DIS_ply", Path(root).parent / "S3DIS_ply"):
        if (base / name).is_dir():
            return base / name
    raise UseError(f"{root}: no prepared S3DIS (no folder {name}); run sparsemask prepare-points s3dis RAW")


def list_clouds(root: str | os.PathLike, part: str = "all", test_area: int = 5, grid: float = GRID) -> list[CloudFile]:
    """Prepared rooms by name.

    Args:
        root: the folder S3DIS_ply, or one above.
        part: "train" (all areas but one), "val" (that one), or "all".
        test_area: the area held out.
        grid: side of the voxels, in metres.

    Raises:
        UseError: nothing prepared, or no room of that part.
    """
    folder = sub_folder(root, grid)
    rooms = sorted(path for path in folder.glob("*.ply") if not path.name.startswith("."))
    if part not in PARTS:
        raise UseError(f"unknown part '{part}' of S3DIS; known: {', '.join(PARTS)}")
    if part != "all":
        rooms = [path for path in rooms if (area_of(path.stem) == test_area) == (part == "val")]
    if not rooms:
        areas = ", ".join(sorted({path.stem[:6] for path in folder.glob("Area_*.ply")})) or "none"
        raise UseError(f"{folder}: no rooms for part '{part}' with test area {test_area} (there are: {areas})")
    return [CloudFile(path.stem, path, read_prepared) for path in rooms]


def read_prepared(file: CloudFile) -> Cloud:
    """A room of `list_clouds`, ours or the public code's; UseError where its files are torn or do not fit together."""
    cloud = _room(file.path)
    cloud.projection, labels = read_projection(file.path.with_suffix(""))
    if labels is not None:
        cloud.full_labels = checked_classes(labels, len(NAMES), f"{file.path.stem}_proj")
    return cloud


def original_path(file: CloudFile) -> Path:
    """Where the room's original points lie."""
    return file.path.parents[1] / "original" / file.path.name


def read_original(file: CloudFile) -> Cloud:
    """All points of a prepared room, in the order of its projection."""
    return _room(original_path(file))


def _room(path: Path) -> Cloud:
    cloud = read_cloud(path)
    if cloud.colours is None or cloud.labels is None:
        raise UseError(f"{path}: a prepared room has red, green, blue and class")
    cloud.labels = checked_classes(cloud.labels, len(NAMES), path)
    return cloud
