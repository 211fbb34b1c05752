"""Generated rooms in S3DIS's layout: the point clouds of --sample.

Six areas of a few furnished rooms with all 13 classes, the same every time; `room_layout` says what stands where.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

import numpy as np

from sparsemask.datasets import cache
from sparsemask.synthetic.folders import STAMP, StampedFolder
from sparsemask.synthetic.room_layout import TYPES, furnish, scan
from sparsemask.tasks.points.layouts.s3dis import GRID, class_of
from sparsemask.tasks.points.prepare import s3dis
from sparsemask.tasks.points.prepare.items import Item, locked, prepare, whole
from sparsemask.VOC12.bulk import write_bulk

VERSION = 1  # of the rooms: raise it when any point changes, so that old folders are made anew
RAW = "raw"
_LIMITS = {"seed": (0, 2**32 - 1), "areas": (1, 99), "rooms": (1, 999), "points": (200, 10**7), "grid": (0.001, 10)}


def make_rooms(
    folder: str | os.PathLike,
    seed: int = 0,
    areas: int = 6,
    rooms: int = 3,
    points: int = 40_000,
    grid: float = GRID,
    raw: bool = False,
    jobs: int | None = 1,
) -> Path:
    """Make the rooms; returns at once when they are there, completes them when they are half made.

    Args:
        folder: absent, empty or of a former call; with other settings the former rooms are replaced.
        seed: the same seed gives the same points.
        areas: number of areas.
        rooms: number of rooms in each area.
        points: of a room, before grid subsampling.
        grid: side of the voxels, in metres.
        raw: also write the raw layout, FOLDER/raw/Area_a/room/Annotations/<class>_<n>.txt.
        jobs: processes, None for all cores.

    Returns:
        FOLDER/S3DIS_ply, which `s3dis.list_clouds` reads.

    Raises:
        UseError: impossible settings, or `folder` holds something else.
    """
    folder = Path(folder)
    settings = {"version": VERSION, "seed": seed, "areas": areas, "rooms": rooms, "points": points, "grid": grid}
    stamp = StampedFolder(folder, "generated rooms", settings, _LIMITS)
    items = room_items(folder, areas, rooms, grid)
    out = folder / s3dis.OUT
    unwritten = lambda: [item for item in items if raw and not _raw_folder(folder, item.name).is_dir()]
    complete = lambda: stamp.stamped and all(whole(path) for item in items for path in item.files)
    if complete() and not unwritten():
        return out
    with locked(folder):
        if not complete():  # while we waited, another process may have made them
            stamp.begin(lambda: [shutil.rmtree(folder / name, ignore_errors=True) for name in (s3dis.OUT, RAW)])
            prepare(items, _Maker(seed, points), out, jobs, "making rooms")
        for item in unwritten():
            _write_raw(_raw_folder(folder, item.name), *room(item.name, seed, points))
        stamp.finish()
    return out


def sample_folder() -> Path:
    """The folder of the rooms of --sample, made on first use."""
    folder = cache() / "rooms"
    if not (folder / STAMP).exists():
        print(f"making the sample rooms in {folder} ...", file=sys.stderr, flush=True)
    make_rooms(folder)
    return folder


def room_items(folder: Path, areas: int, rooms: int, grid: float) -> list[Item]:
    """The rooms' names and files."""
    names = [
        f"Area_{area}_{TYPES[number % len(TYPES)]}_{number // len(TYPES) + 1}"
        for area in range(1, areas + 1)
        for number in range(rooms)
    ]
    return [s3dis.item(name, None, folder / s3dis.OUT, grid) for name in names]


def room(name: str, seed: int, points: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """A room by its name `Area_a_type_n`.

    Returns:
        xyz float64 (N, 3), metres to three decimals, somewhere in its building; colours uint8 (N, 3); the annotation
        `<class>_<n>` of every point, sorted.
    """
    _, area, kind, number = name.split("_")
    rng = np.random.default_rng([seed, int(area), TYPES.index(kind), int(number)])
    scene = furnish(kind, rng)
    counts: dict[str, int] = {}
    for item in scene:
        counts[item.kind] = counts.get(item.kind, 0) + 1
        item.name = f"{item.kind}_{counts[item.kind]}"
    xyz, colours, owner = scan(sorted(scene, key=lambda item: item.name), points, rng)
    names = sorted(item.name for item in scene)
    xyz = (xyz + rng.uniform(-30, 30, 3) * [1, 1, 0]).round(3)
    return xyz, colours, [names[number] for number in owner]


class _Maker:
    """Makes an item's files; an object, since other processes import it."""

    def __init__(self, seed: int, points: int):
        self.seed, self.points = seed, points

    def __call__(self, item: Item) -> None:
        xyz, colours, annotations = room(item.name, self.seed, self.points)
        s3dis.write_room(item, xyz, colours, np.array([class_of(name) for name in annotations], np.uint8))


def _write_raw(folder: Path, xyz: np.ndarray, colours: np.ndarray, annotations: list[str]) -> None:
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    names = np.array(annotations)
    for name in dict.fromkeys(annotations):
        rows = zip(xyz[names == name].tolist(), colours[names == name].tolist(), strict=True)
        text = "".join(f"{x:.3f} {y:.3f} {z:.3f} {r} {g} {b}\n" for (x, y, z), (r, g, b) in rows)
        write_bulk(part / f"{name}.txt", text.encode())
    os.replace(part, folder)


def _raw_folder(folder: Path, name: str) -> Path:
    _, area, kind = name.split("_", 2)
    return folder / RAW / f"Area_{area}" / kind / "Annotations"
