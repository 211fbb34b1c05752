"""PLY files: the vertices of a cloud, every property with its own type.

Format: G. Turk, "The PLY Polygon File Format" (1994). Faces and other elements after the vertices are left unread.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from sparsemask.containers import reading
from sparsemask.errors import UseError
from sparsemask.files import atomic_write

_TYPES = {
    **{"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"},
    **{"float": "f4", "double": "f8", "int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2"},
    **{"int32": "i4", "uint32": "u4", "float32": "f4", "float64": "f8"},
}
_NAMES = {  # numpy's kind and size to PLY's oldest words, which every reader knows
    **{"i1": "char", "u1": "uchar", "i2": "short", "u2": "ushort"},
    **{"i4": "int", "u4": "uint", "f4": "float", "f8": "double"},
}
_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}
_LONGEST = 65536  # bytes a header may have


def read_ply(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The vertices' properties, (N,) each, by name and in the file's order; types kept, in native byte order.

    Raises:
        UseError: the file is absent, no PLY file, of an unknown format or property type, or shorter than it says.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            order, count, kinds = _header(file, path)
            if not order and 2 * count * len(kinds) > os.fstat(file.fileno()).st_size:  # a digit and a space each
                raise UseError(f"{path}: truncated: no room for the {count} points that it promises")
            if order:
                return _binary(file, path, count, np.dtype([(name, order + kind) for name, kind in kinds]))
            return _ascii(file, path, count, kinds)
    except FileNotFoundError:
        raise UseError(f"{path}: no such file") from None


def ply_size(path: str | os.PathLike) -> tuple[int, int | None]:
    """Vertices that the header promises, and the least size in bytes that a whole file has (None for ascii)."""
    path = Path(path)
    with path.open("rb") as file:
        order, count, kinds = _header(file, path)
        width = sum(np.dtype(kind).itemsize for _, kind in kinds)
        return count, file.tell() + count * width if order else None


def write_ply(path: str | os.PathLike, columns: Mapping[str, np.ndarray], comment: str = "") -> None:
    """Write vertices, binary little-endian, atomically.

    Args:
        columns: name -> (N,) integers of at most 32 bits or floats; all of one length.

    Raises:
        UseError: columns of different lengths, or a type or a name that PLY has no word for.
    """
    arrays = {name: np.asarray(values) for name, values in columns.items()}
    lengths = {len(values) for values in arrays.values()}
    if len(lengths) != 1:
        raise UseError(f"{path}: the columns have {', '.join(map(str, sorted(lengths))) or 'no'} points")
    header = ["ply", "format binary_little_endian 1.0"]
    header += [f"comment {' '.join(comment.split())}"] * bool(comment)
    header.append(f"element vertex {lengths.pop()}")
    for name, values in arrays.items():
        word = _NAMES.get(values.dtype.str[1:])
        if word is None or not re.fullmatch(r"[!-~]+", name):
            raise UseError(f"{path}: a PLY file cannot hold '{name}' of type {values.dtype}")
        header.append(f"property {word} {name}")
    table = np.empty(len(values), np.dtype([(name, "<" + values.dtype.str[1:]) for name, values in arrays.items()]))
    for name, values in arrays.items():
        table[name] = values
    with atomic_write(path) as file:
        file.write("\n".join([*header, "end_header\n"]).encode("ascii", "replace"))
        file.write(table.tobytes())


def _header(file: BinaryIO, path: Path) -> tuple[str, int, list[tuple[str, str]]]:
    """Byte order ("" for ascii), number of vertices, their (property, type); the file stands at the data after it."""
    if file.readline(16).strip() != b"ply":
        raise UseError(f"{path}: no PLY file (it does not begin with 'ply')")
    order, elements, kinds = None, [], []
    while file.tell() < _LONGEST:
        line = file.readline(_LONGEST)
        words = line.decode("ascii", "replace").split()
        if words == ["end_header"]:
            break
        if not line:
            raise UseError(f"{path}: the PLY header has no end")
        try:
            if words and words[0] == "format":
                order = _ORDERS[words[1]]
            elif words and words[0] == "element":
                elements.append((words[1], int(words[2])))
            elif words and words[0] == "property" and elements[-1][0] == "vertex":
                kinds.append((words[2], _TYPES[words[1]]))
        except (KeyError, IndexError, ValueError):
            raise UseError(f"{path}: the PLY header's line '{' '.join(words)[:60]}' is not understood") from None
    else:
        raise UseError(f"{path}: the PLY header has no end")
    if order is None or not elements or elements[0][0] != "vertex" or elements[0][1] < 0 or not kinds:
        raise UseError(f"{path}: the PLY header names no format, or does not begin with vertices")
    if len({name for name, _ in kinds}) != len(kinds):
        raise UseError(f"{path}: the PLY header names a property twice")
    return order, elements[0][1], kinds


def _binary(file: BinaryIO, path: Path, count: int, kind: np.dtype) -> dict[str, np.ndarray]:
    have = (os.fstat(file.fileno()).st_size - file.tell()) // kind.itemsize
    if have < count:
        raise UseError(f"{path}: truncated: {have} of {count} points are there")
    table = np.frombuffer(file.read(count * kind.itemsize), kind)
    return {name: table[name].astype(kind[name].newbyteorder("=")) for name in kind.names}


def _ascii(file: BinaryIO, path: Path, count: int, kinds: list[tuple[str, str]]) -> dict[str, np.ndarray]:
    if count == 0:
        return {name: np.empty(0, kind) for name, kind in kinds}
    with reading(path, "not readable as points"):
        table = np.loadtxt(io.TextIOWrapper(file, "ascii"), np.dtype(kinds), max_rows=count, ndmin=1)
    if len(table) < count:
        raise UseError(f"{path}: truncated: {len(table)} of {count} points are there")
    return {name: np.ascontiguousarray(table[name]) for name, _ in kinds}
