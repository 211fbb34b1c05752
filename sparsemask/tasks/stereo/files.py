"""Disparity maps and pictures of pairs, from and to files.

.png   16 bits, 256 times the disparity, 0 = no value (KITTI; 255.99 px at most)
.pfm   grey float map, rows from the bottom up, little endian where its third line is negative (SceneFlow,
       Middlebury); the size of that number says nothing about the values in either set, and is passed over
.npz   one array (H, W), as scikit-image carries Middlebury's motorcycle; .npy likewise
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from sparsemask.containers import open_npz, read_npy
from sparsemask.errors import UseError
from sparsemask.files import write_bytes
from sparsemask.pictures.files import encoded
from sparsemask.pictures.files import read_picture as read_any
from sparsemask.VOC12.images import decoding

SUFFIXES = (".png", ".pfm", ".npz", ".npy")
WRITTEN = (".png", ".pfm")
PNG_SCALE = 256
_HEADER = 256  # bytes that a PFM's header has at most
_PFM = re.compile(rb"(P[fF])\s+(\d{1,9})\s+(\d{1,9})\s+([-+]?[\d.]{1,40}(?:[eE][-+]?\d{1,3})?)(\r\n|\s)")
PNG_MOST = 65535 / PNG_SCALE  # px, the largest that a 16-bit PNG holds


def read_picture(path: str | os.PathLike) -> np.ndarray:
    """A picture of any kind as uint8 (H, W, 3): grey is repeated, alpha dropped, 16 bits become 8.

    Raises UseError when it is missing, torn or no picture.
    """
    return np.rint(read_any(path).colour).clip(0, 255).astype(np.uint8)


def read_disparity(path: str | os.PathLike) -> np.ndarray:
    """A disparity map in pixels, float32 (H, W); 0 where there is no value (in the file: 0, negative, NaN, infinite).

    Raises UseError for another suffix, a file that is missing, torn or of another kind: 8 bits, colour.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UseError(f"{path}: disparities are read from {', '.join(SUFFIXES)}")
    values = _read_array(path) if suffix.startswith(".np") else _read_map(path, suffix)
    if values.ndim != 2 or values.dtype.kind not in "fiu" or not values.size:
        raise UseError(f"{path}: expected disparities (H, W), found {values.dtype} of {values.shape}")
    values = values.astype(np.float32)
    return np.where(np.isfinite(values) & (values > 0), values, np.float32(0))


def write_disparity(path: str | os.PathLike, disparity: np.ndarray) -> None:
    """Write a map (H, W) in pixels as 16-bit PNG or PFM by the suffix; what is not finite or not above 0 has no value.

    Raises UseError for another suffix, and for disparities that a PNG has no room for.
    """
    path = Path(path)
    form = {".png": "PNG", ".pfm": "PPM"}.get(path.suffix.lower())
    if form is None:
        raise UseError(f"{path}: disparities are written as {' or '.join(WRITTEN)}")
    values = np.asarray(disparity, np.float32)
    known = np.isfinite(values) & (values > 0)
    values = np.where(known, values, np.float32(0))
    if form == "PNG":
        if values.max(initial=0) > PNG_MOST:
            raise UseError(f"{path}: {values.max():.1f} px are more than a 16-bit PNG holds (below 256): .pfm")
        values = np.maximum(np.rint(values * PNG_SCALE), known).astype(np.uint16)  # what is known stays above 0
    write_bytes(path, encoded(Image.fromarray(values), form))


def _read_map(path: Path, suffix: str) -> np.ndarray:
    with decoding(path), open(path, "rb") as file:
        magic = file.read(2)
        file.seek(0)
        if suffix == ".pfm" and magic in (b"Pf", b"PF"):
            return _read_pfm(file)
        with Image.open(file) as image:
            image.load()
            mode, values = image.mode, np.asarray(image)
    if suffix == ".pfm":
        if mode != "F":
            raise UseError(f"{path}: no PFM but a picture of mode {mode}")
        return values
    if not mode.startswith("I"):
        raise UseError(f"{path}: mode {mode}: disparities are PNG of 16 bits, 256 times the pixels")
    return values / np.float32(PNG_SCALE)


def _read_pfm(file: BinaryIO) -> np.ndarray:
    """The values of a PFM, rows from the top down; ValueError where it is no grey one or its size is another.

    Lines of the header may end in LF, CRLF or CR. After its last line one byte, or CRLF, stands before the values.
    """
    head = _PFM.match(file.read(_HEADER))
    if head is None:
        raise ValueError("its PFM header is not 'Pf', width and height, scale")
    if head[1] == b"PF":
        raise ValueError("a PFM of three colours: disparities have one")
    width, height = int(head[2]), int(head[3])
    scale = float(head[4])
    if not width * height or not np.isfinite(scale) or scale == 0:
        raise ValueError(f"its PFM header says {width}x{height} values of scale {scale:g}")
    need, whole = 4 * width * height, os.fstat(file.fileno()).st_size
    start = head.end()
    if head[5] == b"\r\n" and b"\n" not in head[0][:-2] and whole - start == need - 1:
        start -= 1  # a lone CR, and a value whose first byte happens to be an LF
    have = whole - start
    if have < need:
        raise ValueError(f"truncated: {have} of the {need} bytes that {width}x{height} values take")
    if have > need + 2:  # a line end behind them harms nobody
        raise ValueError(
            f"{have} bytes for {width}x{height} values, which take {need}: was it changed as if it were text?"
        )
    file.seek(start)
    values = np.frombuffer(file.read(need), "<f4" if scale < 0 else ">f4").reshape(height, width)
    return values[::-1].astype(np.float32)


def _read_array(path: Path) -> np.ndarray:
    if path.suffix.lower() == ".npy":
        return read_npy(path)
    with open_npz(path, "not readable as an array") as found:
        if len(found.names) != 1:
            raise UseError(f"{path}: {len(found.names)} arrays, expected one ({', '.join(found.names)[:80]})")
        return found[found.names[0]]
