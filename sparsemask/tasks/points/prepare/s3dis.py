"""S3DIS rooms from their annotations: text files to PLY, thinned-out clouds and projections."""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.files import atomic_write
from sparsemask.tasks.points.clouds.cloud import CloudFile
from sparsemask.tasks.points.clouds.graph import make_tree, nearest
from sparsemask.tasks.points.clouds.grid import check_points, grid_subsample
from sparsemask.tasks.points.clouds.ply import write_ply
from sparsemask.tasks.points.layouts.s3dis import GRID, class_of, read_original, read_prepared
from sparsemask.tasks.points.prepare.items import Item, whole

OUT = "S3DIS_ply"
_PLAIN = b"0123456789.+-eE \t\r\n"
_FOREIGN = re.compile(b"[^" + re.escape(_PLAIN) + b"]")
_TORN = 8  # damaged lines of a file that may be mended; more mean that it is no such file


def find_items(raw: str | os.PathLike, out: str | os.PathLike | None = None, grid: float = GRID) -> list[Item]:
    """What is to be made: one item for every room Area_a/room/Annotations below `raw`.

    Args:
        raw: the folder of Area_1 .. Area_6, or one above.
        out: where to; S3DIS_ply beside the areas' folder by default.

    Raises:
        UseError: no rooms there.
    """
    rooms = raw_rooms(raw)
    if not rooms:
        raise UseError(f"{raw}: no rooms (no folder Area_<number>/<room>/Annotations)")
    bases = {room.parents[2] for room in rooms}
    if len(bases) > 1:
        raise UseError(f"{raw}: rooms in several folders ({', '.join(sorted(map(str, bases)))}); name one of them")
    out = Path(out) if out else bases.pop().absolute().parent / OUT
    return [item(f"{room.parents[1].name}_{room.parent.name}", room, out, grid) for room in rooms]


def raw_rooms(raw: str | os.PathLike) -> list[Path]:
    """The folders of annotations below a folder, or one further below; empty where it holds no raw rooms."""
    return sorted([*Path(raw).glob("Area_*/*/Annotations"), *Path(raw).glob("*/Area_*/*/Annotations")])


def item(name: str, source: Path | None, out: Path, grid: float = GRID) -> Item:
    """A room's files: the thinned-out cloud is written last, and so vouches for the others."""
    sub = out / f"sub_{grid:.3f}"
    return Item(name, source, (out / "original" / f"{name}.ply", sub / f"{name}_proj.npz", sub / f"{name}.ply"), grid)


def find_prepared(root: Path, grid: float = GRID) -> list[Item]:
    """The items of a prepared folder, by the files that are there, ours or the public code's."""
    names = {path.stem for part in ("original", f"sub_{grid:.3f}") for path in (root / part).glob("[!.]*.ply")}
    return [item(name, None, root, grid) for name in sorted(names)]


def make(one: Item) -> str | None:
    """Make one room; returns what was mended in it, if anything."""
    xyz, colours, labels, mended = read_room(one.source)
    write_room(one, xyz, colours, labels)
    return mended


def write_room(one: Item, xyz: np.ndarray, colours: np.ndarray, labels: np.ndarray) -> None:
    """Write a room's three files.

    Args:
        one: which.
        xyz: (N, 3), metres; moved so that the least coordinates become 0.
        colours: uint8 (N, 3).
        labels: (N,), 0 .. 12.
    """
    check_points(xyz, one.name)
    xyz = (xyz - xyz.min(0)).astype(np.float32)
    labels = np.asarray(labels, np.uint8)
    sub, means, classes = grid_subsample(xyz, one.grid, colours / np.float32(255), labels)
    original, proj, thinned = one.files
    write_ply(original, _columns(xyz, colours, labels))
    with atomic_write(proj) as file:
        np.savez(file, projection=nearest(sub, xyz, tree=make_tree(sub)), labels=labels)
    write_ply(thinned, _columns(sub, means, classes))


def read_room(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, str | None]:
    """All points of Annotations/*.txt, sorted by file.

    Returns:
        xyz float64 (N, 3), colours uint8 (N, 3), labels uint8 (N,), and a line on what was mended or None.

    Raises:
        UseError: no points, a file that is no table of x y z r g b, coordinates that are not finite.
    """
    tables, labels, mended = [np.empty((0, 6))], [np.empty(0, np.uint8)], []
    for path in sorted(folder.glob("[!.]*.txt")):
        table, damage = read_annotation(path)
        tables.append(table)
        labels.append(np.full(len(table), class_of(path.stem), np.uint8))
        mended += damage
    points = np.concatenate(tables)
    check_points(points[:, :3], folder)
    colours = points[:, 3:]
    if not ((colours >= 0) & (colours <= 255)).all():
        raise UseError(f"{folder}: colours that are not between 0 and 255")
    return points[:, :3], colours.astype(np.uint8), np.concatenate(labels), "; ".join(mended) or None


def read_annotation(path: Path) -> tuple[np.ndarray, list[str]]:
    """An annotation's x y z r g b, float64 (N, 6), and what was mended in it.

    The published files hold damaged bytes (Area_5/hallway_6/Annotations/ceiling_1.txt, line 180389): one in place of
    a space, or of a digit. Whichever gives six columns is taken.
    """
    data = path.read_bytes()
    mended = []
    if data.translate(None, _PLAIN):
        data, mended = _mend(path, data)
    if not data.strip():
        return np.empty((0, 6)), mended
    try:
        table = np.loadtxt(io.BytesIO(data), ndmin=2, encoding="ascii")
    except ValueError as error:
        raise UseError(f"{path}: not a table of x y z r g b ({error})") from None
    if table.shape[1] != 6:
        raise UseError(f"{path}: not a table of x y z r g b, but of {table.shape[1]} columns")
    return table, mended


def _mend(path: Path, data: bytes) -> tuple[bytes, list[str]]:
    lines, mended = data.split(b"\n"), []
    for number, line in enumerate(lines):
        if not _FOREIGN.search(line):
            continue
        if re.search(rb"(?i)\b(nan|inf)", line):  # numbers after all, though useless ones: counted by the caller
            continue
        fits = [fixed for filler in (b" ", b"0") if len((fixed := _FOREIGN.sub(filler, line)).split()) == 6]
        if not fits or len(mended) == _TORN:
            raise UseError(f"{path}: line {number + 1} is not x y z r g b: {line[:60].decode('ascii', 'replace')!r}")
        lines[number] = fits[0]
        mended.append(f"{'/'.join(path.parts[-4:])}: line {number + 1} had a damaged character, mended")
    return b"\n".join(lines), mended


def check(one: Item) -> list[str]:
    """What is wrong with a prepared room, a line each."""
    faults = [f"{path}: missing or torn" for path in (one.files[0], one.files[2]) if not whole(path)]
    if faults:
        return faults
    try:
        cloud = read_prepared(CloudFile(one.name, one.files[2], read_prepared))
        full = read_original(CloudFile(one.name, one.files[2], read_prepared))
    except UseError as error:
        return [str(error)]
    if cloud.projection is None:
        return [f"{one.files[1]}: missing"]
    if len(cloud.projection) != len(full):
        faults.append(f"{one.files[1]}: {len(cloud.projection)} entries for {len(full)} points")
    elif len(cloud.projection) and not 0 <= cloud.projection.min() <= cloud.projection.max() < len(cloud):
        faults.append(f"{one.files[1]}: points beyond the {len(cloud)} of the thinned-out cloud")
    if cloud.full_labels is not None and not np.array_equal(cloud.full_labels, full.labels):
        faults.append(f"{one.files[1]}: its labels are not those of {one.files[0].name}")
    return faults


def _columns(xyz: np.ndarray, colours: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    names = ("x", "y", "z", "red", "green", "blue")
    return dict(zip(names, (*xyz.T, *colours.T), strict=True)) | {"class": labels.astype(np.uint8)}
