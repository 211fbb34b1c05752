"""Pairs with their truth, disparity maps and images, from and to files; sizes and scales are checked.

.png   16 bits, 256 times the disparity, 0 = no value (KITTI; 255.99 px at most)
.pfm   grey float map, rows from the bottom up, little endian where its third line is negative (SceneFlow,
       Middlebury); the size of that number says nothing about the values in either set, and is passed over
.npz   one array (H, W), as scikit-image carries Middlebury's motorcycle; .npy likewise
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from PIL import Image

from sparsemask.containers import open_npz, read_npy
from sparsemask.errors import UseError
from sparsemask.files import write_bytes
from sparsemask.pictures.files import encoded
from sparsemask.pictures.files import read_picture as read_any
from sparsemask.VOC12.images import decoding, exif_words

SUFFIXES = (".png", ".pfm", ".npz", ".npy")
WRITTEN = (".png", ".pfm")
PNG_SCALE = 256
_HEADER = 256  # bytes that a PFM's header has at most
_PFM = re.compile(rb"(P[fF])\s+(\d{1,9})\s+(\d{1,9})\s+([-+]?[\d.]{1,40}(?:[eE][-+]?\d{1,3})?)(\r\n|\s)")
PNG_MOST = 65535 / PNG_SCALE  # px, the largest that a 16-bit PNG holds


class PairFiles(NamedTuple):
    """Files of a pair.

    Attributes:
        disparity: the left image's, None where there is none.
        noc: a disparity map that has values at non-occluded pixels only, or an image that is 255 there.
        objects: an image that is above 0 on the foreground (KITTI 2015).
    """

    name: str
    left: Path
    right: Path
    disparity: Path | None = None
    noc: Path | None = None
    objects: Path | None = None


@dataclass(frozen=True)
class Frame:
    """A pair in memory.

    Attributes:
        left, right: uint8 (H, W, 3).
        disparity: float32 (H, W) in pixels, 0 = no value.
        noc: bool (H, W), where the right image shows the same point, or None if unknown.
        foreground: bool (H, W), or None.
    """

    name: str
    left: np.ndarray
    right: np.ndarray
    disparity: np.ndarray
    noc: np.ndarray | None = None
    foreground: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.left.shape[:2]


def read_picture(path: str | os.PathLike) -> np.ndarray:
    """An image of any kind as uint8 (H, W, 3): grey is repeated, alpha dropped, 16 bits become 8.

    Raises:
        UseError: it is missing, truncated or no image.
    """
    return np.rint(read_any(path).colour).clip(0, 255).astype(np.uint8)


def read_disparity(path: str | os.PathLike) -> np.ndarray:
    """A disparity map in pixels, float32 (H, W); 0 where there is no value (in the file: 0, negative, NaN, infinite).

    Raises:
        UseError: another suffix, or a file that is missing, truncated or of another kind (8 bits, colour).
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

    Raises:
        UseError: another suffix, or disparities that a 16-bit PNG cannot hold.
    """
    path = Path(path)
    form = {".png": "PNG", ".pfm": "PPM"}.get(path.suffix.lower())
    if form is None:
        raise UseError(f"{path}: disparities are written as {' or '.join(WRITTEN)}")
    values = np.asarray(disparity, np.float32)
    has_value = np.isfinite(values) & (values > 0)
    values = np.where(has_value, values, np.float32(0))
    if form == "PNG":
        if values.max(initial=0) > PNG_MOST:
            raise UseError(f"{path}: {values.max():.1f} px are more than a 16-bit PNG holds (below 256): .pfm")
        values = np.maximum(np.rint(values * PNG_SCALE), has_value).astype(np.uint16)  # what is known stays above 0
    write_bytes(path, encoded(Image.fromarray(values), form))


def read_pictures(left: Path | str, right: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """Both images, uint8 (H, W, 3); UseError where their sizes differ."""
    images = read_picture(left), read_picture(right)
    if images[0].shape != images[1].shape:
        a, b = (_size(item) for item in images)
        turned = [exif_words(item) for item in (right, left)]
        raise UseError(
            f"{right}: {b} pixels{turned[0]}, but the left picture {left} has {a}{turned[1]}: a pair has one size"
        )
    return images


def read_frame(files: PairFiles) -> Frame:
    """Read a pair; UseError where a file is missing or broken, sizes differ, or disparities are of another scale.

    Another scale shows in values wider than the image, or all below one pixel.
    """
    left, right = read_pictures(files.left, files.right)
    if files.disparity is None:
        return Frame(files.name, left, right, np.zeros(left.shape[:2], np.float32))
    truth = read_disparity(files.disparity)
    _same_size(truth, files.disparity, left, files.left)
    most = float(truth.max())
    if most > left.shape[1] or 0 < most < 1:
        detail = f"the largest is {most:.4g} px" + (f", the picture {left.shape[1]} wide" if most > 1 else "")
        raise UseError(f"{files.disparity}: of another scale: {detail} (16-bit PNG hold 256 times the pixels)")
    return Frame(files.name, left, right, truth, _seen(files, left), _foreground(files, left))


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
    need, file_size = 4 * width * height, os.fstat(file.fileno()).st_size
    start = head.end()
    if head[5] == b"\r\n" and b"\n" not in head[0][:-2] and file_size - start == need - 1:
        start -= 1  # a lone CR, and a value whose first byte happens to be an LF
    have = file_size - start
    if have < need:
        raise ValueError(f"truncated: {have} of the {need} bytes that {width}x{height} values take")
    if have > need + 2:  # a trailing line end is accepted
        raise ValueError(
            f"{have} bytes for {width}x{height} values, which take {need}: was it changed as if it were text?"
        )
    file.seek(start)
    values = np.frombuffer(file.read(need), "<f4" if scale < 0 else ">f4").reshape(height, width)
    return values[::-1].astype(np.float32)


def _read_array(path: Path) -> np.ndarray:
    if path.suffix.lower() == ".npy":
        return read_npy(path)
    with open_npz(path, "not readable as an array") as arrays:
        if len(arrays.names) != 1:
            raise UseError(f"{path}: {len(arrays.names)} arrays, expected one ({', '.join(arrays.names)[:80]})")
        return arrays[arrays.names[0]]


def _seen(files: PairFiles, left: np.ndarray) -> np.ndarray | None:
    if files.noc is None:
        return None
    # Middlebury's masks are images: 255 seen, 128 occluded, 0 unknown.
    mask = files.noc.stem.startswith("mask")
    visible = read_picture(files.noc)[..., 0] == 255 if mask else read_disparity(files.noc) > 0
    _same_size(visible, files.noc, left, files.left)
    return visible


def _foreground(files: PairFiles, left: np.ndarray) -> np.ndarray | None:
    if files.objects is None:
        return None
    foreground = read_picture(files.objects)[..., 0] > 0
    _same_size(foreground, files.objects, left, files.left)
    return foreground


def _same_size(values: np.ndarray, path: Path, left: np.ndarray, image_path: Path) -> None:
    if values.shape != left.shape[:2]:
        turned = exif_words(image_path, values.shape)
        raise UseError(f"{path}: {_size(values)} values for the {_size(left)} pixels of {image_path}{turned}")


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
