"""LAS and LAZ files of airborne and terrestrial scanners, by laspy (``pip install 'sparsemask[las]'``)."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType

import numpy as np

from sparsemask.containers import reading
from sparsemask.errors import UseError, one_line
from sparsemask.files import atomic_write

SUFFIXES = (".las", ".laz")
_CHUNK = 1_000_000  # points in memory at a time; a header's count is not believed
_SCALE = 0.001  # metres between coordinates that are written, where the cloud came from another kind of file
_OLD_CLASSES = 32  # that point formats below 6 have room for
_BROKEN = "not readable as LAS or LAZ"
_NAMES_VLR = "sparsemask", 1


def _laspy(path: object) -> ModuleType:
    try:
        import laspy
    except ModuleNotFoundError:
        raise UseError(f"{path}: LAS and LAZ files need laspy: pip install 'sparsemask[las]'") from None
    if Path(str(path)).suffix.lower() == ".laz" and not laspy.LazBackend.detect_available():
        raise UseError(f"{path}: LAZ files need lazrs beside laspy: pip install 'sparsemask[las]'")
    module: ModuleType = laspy
    return module


def check_written(path: Path) -> None:
    """Raise a UseError where laspy, or what LAZ needs beside it, is absent."""
    _laspy(path)


@contextlib.contextmanager
def _in_one_line(path: object) -> Iterator[None]:
    """Inside, whatever laspy and its decoders raise at a file becomes a UseError of one line."""
    try:
        with reading(path, _BROKEN):
            yield
    except BaseException as error:
        if isinstance(error, Exception | KeyboardInterrupt | SystemExit | GeneratorExit):
            raise
        # A decoder in Rust panics with an exception that is no Exception.
        raise UseError(f"{path}: {_BROKEN} ({one_line(error)[:160] or type(error).__name__})") from None


def read_las(path: Path) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Points of a LAS or LAZ file.

    Returns:
        xyz float64 (N, 3) in the file's unit; colours (N, 3), uint16, or uint8 where a file has 8 bits in its 16, or
        None; classification (N,), or None where all are 0.

    Raises:
        UseError: laspy is absent, or the file is truncated or no such file.
    """
    laspy = _laspy(path)
    xyz, colours, labels = [], [], []
    with _in_one_line(path), laspy.open(path) as reader:
        count, size = reader.header.point_count, os.path.getsize(path)
        have = (size - reader.header.offset_to_point_data) // max(1, reader.header.point_format.size)
        if not reader.header.are_points_compressed and have < count:
            raise UseError(f"{path}: truncated: {max(0, have)} of {count} points")
        coloured = "red" in reader.header.point_format.dimension_names
        for chunk in reader.chunk_iterator(_CHUNK):
            xyz.append(np.stack([np.asarray(chunk[axis], np.float64) for axis in "xyz"], axis=1))
            labels.append(np.asarray(chunk["classification"], np.uint8))
            if coloured:
                colours.append(np.stack([np.asarray(chunk[name]) for name in ("red", "green", "blue")], axis=1))
    if sum(map(len, xyz)) != count:
        raise UseError(f"{path}: truncated: {sum(map(len, xyz))} of {count} points")
    points = np.concatenate(xyz) if xyz else np.empty((0, 3))
    classes = np.concatenate(labels) if labels else np.empty(0, np.uint8)
    rgb = np.concatenate(colours) if colours else None
    if rgb is not None and not rgb.any():
        rgb = None
    elif rgb is not None and rgb.max() < 256:
        rgb = rgb.astype(np.uint8)
    return points, rgb, classes if classes.any() else None


def write_las(
    path: Path,
    coordinates: np.ndarray,
    classes: np.ndarray,
    names: Sequence[str],
    colours: np.ndarray,
    source: Path | None = None,
) -> None:
    """Write classes as a LAS (or, by the suffix, LAZ) file's classification; class names stand in a record of it.

    Args:
        path: the file.
        coordinates: (N, 3).
        classes: (N,) numbers below 256.
        names: of the classes.
        colours: uint8 (N, 3), where `source` does not say more.
        source: the LAS or LAZ file of these points: all else is as there. None: x, y, z and colours are written.

    Raises:
        UseError: laspy is absent, or the source changed meanwhile.
    """
    laspy = _laspy(path)
    with _in_one_line(source or path):
        record = laspy.VLR(*_NAMES_VLR, "class names", json.dumps(list(names)).encode())
        if source is None:
            header = laspy.LasHeader(version="1.4", point_format=7)
            header.scales, header.offsets = np.full(3, _SCALE), np.floor(coordinates.min(0))
            points = laspy.LasData(header)
            points.x, points.y, points.z = coordinates.T
            points.red, points.green, points.blue = 257 * colours.T.astype(np.uint16)
            chunks: Iterator = iter([points.points])
            reader = contextlib.nullcontext()
        else:
            reader = laspy.open(source)
            header = reader.header
            chunks = reader.chunk_iterator(_CHUNK)
        if header.point_format.id < 6 and classes.max(initial=0) >= _OLD_CLASSES:
            raise UseError(f"{path}: point format {header.point_format.id} has no room for class {classes.max()}: .ply")
        if header.point_count not in (0, len(classes)):
            raise UseError(f"{source}: changed while it was read: {header.point_count} points, before {len(classes)}")
        header.vlrs.append(record)
        start = 0
        with reader, atomic_write(path) as file:
            compressed = path.suffix.lower() == ".laz"
            with laspy.open(file, mode="w", header=header, do_compress=compressed, closefd=False) as writer:
                for chunk in chunks:
                    chunk["classification"] = classes[start : start + len(chunk)]
                    writer.write_points(chunk)
                    start += len(chunk)
