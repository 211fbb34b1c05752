"""Decoding images: which files count as images, upright, 8 bits a channel, every broken file in one clear line.

The conventions here hold for every task and command. An image is turned as its EXIF (or XMP) orientation says, as
viewers show it; its size is that of the upright image. 16-bit values are divided by 257. Floats of 0 to 1 are
multiplied by 255, floats of 0 to 255 are taken as they stand. Other values are refused.
"""

from __future__ import annotations

import contextlib
import os
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from sparsemask.containers import stand_in
from sparsemask.errors import UseError

# The suffixes of images, in any case; of several files that one name without suffix may mean, the first here wins.
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm")

# What Pillow raises on truncated or hostile files, apart from operating-system errors.
_BROKEN = (
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    MemoryError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
_ORIENTATION = 0x0112  # EXIF's and TIFF's tag
_WIDTH, _HEIGHT = 0x0100, 0x0101  # TIFF's tags
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = 5  # from this orientation on width and height are exchanged
_TURNING_TEXTS = (b"XML:com.adobe.xmp", b"Raw profile type")  # texts of a PNG that may hold an orientation
_CHUNKS = 100_000  # of a PNG, looked through for metadata behind the pixels
_FEW_BITS = 4095  # largest value of 12 bits: a 16-bit image below it would come out black
_HALF = 0.5 / 255  # half an 8-bit level, which floats may overshoot by


@contextlib.contextmanager
def decoding(name: object) -> Iterator[None]:
    """Inside, every failure of decoding the file called `name` becomes a one-line UseError."""
    try:
        yield
    except FileNotFoundError:
        raise UseError(f"{name}: no such file") from None
    except UnidentifiedImageError:
        why = stand_in(name) or "not readable as a picture (its format is none we know)"
        raise UseError(f"{name}: {why}") from None
    except OSError as error:
        # Pillow reports truncated data as an OSError without a number; one with a number is the system's.
        reason = error.strerror if error.errno else error
        raise UseError(f"{name}: not readable as a picture ({reason})") from None
    except _BROKEN as error:
        raise UseError(f"{name}: not readable as a picture ({error})") from None


def is_picture(path: str | os.PathLike) -> bool:
    """Whether a file has the suffix of an image and is not hidden."""
    path = Path(path)
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".")


def without_suffix(name: str) -> str:
    """An image's name without its suffix; "my.photo-1", which has none, stays as it is."""
    return str(Path(name).with_suffix("")) if Path(name).suffix.lower() in SUFFIXES else name


def find_picture(folder: Path, stem: str) -> Path | None:
    """The image of this name, without suffix, in a folder: the first of SUFFIXES that exists, in any case."""
    candidates = (stem + suffix for kind in SUFFIXES for suffix in (kind, kind.upper()))
    path_found = next((folder / name for name in candidates if (folder / name).is_file()), None)
    if path_found is None and folder.is_dir():
        path_found = next((path for path in sorted(folder.iterdir()) if path.stem == stem and is_picture(path)), None)
    return path_found


def upright(image: Image.Image) -> Image.Image:
    """A decoded image, turned as its EXIF or XMP orientation says; itself where there is nothing to turn."""
    turn = _TURNS.get(_orientation(image))  # Pillow turns TIFF while decoding and forgets their tag
    return image if turn is None else image.transpose(turn)


def picture_size(path: str | os.PathLike) -> tuple[int, int]:
    """Height and width of an upright image, from its file's header; UseError as for :func:`read_picture`."""
    return _header(path)[0]


def exif_words(path: str | os.PathLike, expected: tuple[int, int] | None = None) -> str:
    """Addition to a message about an image's size: empty unless EXIF exchanges its height and width.

    Args:
        path: the image.
        expected: height and width that do not fit the upright image; if they fit its pixels as stored, the words
            say what to do.
    """
    (height, width), orientation = _header(path)
    if orientation < _SIDEWAYS:
        return ""
    text = f" upright (its EXIF orientation is {orientation}, its pixels are stored as {height}x{width})"
    if expected == (width, height):
        text += ", which the other file fits: turn that one, or remove the EXIF orientation from the picture"
    return text


def size_words(size: tuple[int, int], image_path: str | os.PathLike, upright_size: tuple[int, int]) -> str:
    """What does not fit where a label (or map) of `size`, (H, W), has another size than its image."""
    (tall, wide), (height, width) = size, upright_size
    return f"{wide}x{tall} pixels, but its picture {image_path} has {width}x{height}{exif_words(image_path, size)}"


def read_picture(path: str | os.PathLike | BinaryIO, name: object = None) -> np.ndarray:
    """Decode an image of any mode to upright RGB, see the module's docstring.

    Args:
        path: a file, or an open binary stream (then say its `name` for messages).

    Returns:
        uint8 array (H, W, 3); grey is repeated, alpha is dropped.

    Raises:
        UseError: the file is missing, truncated or no image, or has values of no known scale.
    """
    return _read(path, name)[0]


def picture_notes(path: str | os.PathLike) -> list[str]:
    """Notes on what reading changes in an image: orientation, scaling of 16 bits or floats."""
    return read_with_notes(path)[1]


def read_with_notes(path: str | os.PathLike) -> tuple[np.ndarray, list[str]]:
    """Results of :func:`read_picture` and :func:`picture_notes`, decoding once."""
    return _read(path, None)


def grey_levels(image: Image.Image) -> tuple[np.ndarray, str]:
    """Values 0 to 255 of a decoded image of mode I, I;16 or F, and how they were scaled in words.

    Returns:
        float32 (H, W).

    Raises:
        ValueError: values that are not finite, negative, or of no known scale.
    """
    values = np.asarray(image, dtype=np.float32)
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    mode, advice = f"mode {image.mode}", "convert it to 8 bits a channel"
    if image.mode != "F":
        if low < 0 or high > 65535:
            raise ValueError(f"{mode}: values from {low:.0f} to {high:.0f}, expected 0 to 65535: {advice}")
        if 0 < high <= _FEW_BITS:
            raise ValueError(
                f"{mode}: no value above {high:.0f} of 65535, of 12 bits or fewer? Stretch it to 16 bits, or {advice}"
            )
        return values / 257, "16 bits a value became 8"
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{mode}: values that are not finite: {advice}")
    if low >= -_HALF and high <= 1 + _HALF:
        return np.clip(values * 255, 0, 255), "floats of 0 to 1 were multiplied by 255"
    # Values between are ambiguous: as 0 to 255 the image would be black.
    if low >= -255 * _HALF and 8 < high <= 255 * (1 + _HALF):
        return np.clip(values, 0, 255), "floats of 0 to 255 were rounded"
    raise ValueError(f"{mode}: floats from {low:.4g} to {high:.4g}, expected 0 to 1 or 0 to 255: {advice}")


def rgb_array(image: Image.Image, name: object = "picture") -> tuple[np.ndarray, list[str]]:
    """(upright RGB uint8 (H, W, 3) of an image of any mode, what was scaled in words); see :func:`read_picture`.

    Raises:
        UseError: values of no known scale, or a truncated file; `name` is what the message calls it.
    """
    with decoding(name):
        image.load()
        turned = upright(image)
        if is_deep(turned):
            levels, note = grey_levels(turned)
            grey = np.rint(levels).astype(np.uint8)
            return np.ascontiguousarray(grey[..., None].repeat(3, axis=2)), [note]
        return np.array(turned if turned.mode == "RGB" else turned.convert("RGB")), []


def is_deep(image: Image.Image) -> bool:
    """Whether a grey image has 16 or 32 bits or floats, which :func:`grey_levels` scales."""
    return image.mode.startswith(("I", "F"))


def deep_colours(image: Image.Image) -> bool:
    """Whether an image's file, not decoded yet, has 16 bits a colour, of which the decoder keeps the upper 8."""
    tiles = image.tile if isinstance(image, ImageFile.ImageFile) else ()
    return not is_deep(image) and any(";16" in str(tile[-1]) for tile in tiles)


def _read(path: str | os.PathLike | BinaryIO, name: object) -> tuple[np.ndarray, list[str]]:
    with decoding(name or path), Image.open(path) as image:
        notes = ["16 bits a colour became 8"] if deep_colours(image) else []
        stored = _orientation(image) if image.format == "TIFF" else 1
        image.load()  # decodes all of it: truncation shows here and not later
        orientation = max(stored, _orientation(image))
        if orientation != 1:
            notes.append(f"turned upright by EXIF orientation {orientation}")
        pixels, more = rgb_array(image, name or path)
        return pixels, notes + more


def _header(path: str | os.PathLike) -> tuple[tuple[int, int], int]:
    """((height, width) upright, orientation 1 to 8) of an image, which is not decoded."""
    with decoding(path), Image.open(path) as image:
        if image.format == "PNG" and image.fp is not None and _metadata_behind(image.fp):
            image.load()
        orientation, (width, height) = _orientation(image), image.size
        if image.format == "TIFF":  # whose size some versions of Pillow exchange at opening, others at decoding
            width, height = (int(image.tag_v2.get(tag, side)) for tag, side in ((_WIDTH, width), (_HEIGHT, height)))
    return ((width, height) if orientation >= _SIDEWAYS else (height, width)), orientation


def _orientation(image: Image.Image) -> int:
    """How an image is to be turned, 1 (not at all) to 8; 1 where its metadata cannot be read."""
    try:
        # The base class': that of PNG decodes the whole image to look behind its pixels.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata
            value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    except (*_BROKEN, OSError, KeyError, TypeError, AttributeError, OverflowError, AssertionError):
        return 1
    return value if isinstance(value, int) and value in _TURNS else 1


def _metadata_behind(file: BinaryIO) -> bool:
    """Whether a PNG has EXIF or XMP behind its pixels; the file's position is kept."""
    position, pixels = file.tell(), False
    try:
        file.seek(8)
        for _ in range(_CHUNKS):
            head = file.read(8)
            if len(head) < 8 or head[4:] == b"IEND":
                return False
            length, kind = int.from_bytes(head[:4], "big"), head[4:]
            pixels = pixels or kind == b"IDAT"
            text = file.read(min(length, 24)) if pixels and kind in (b"iTXt", b"tEXt", b"zTXt") else b""
            if (pixels and kind == b"eXIf") or text.startswith(_TURNING_TEXTS):
                return True
            file.seek(length - len(text) + 4, os.SEEK_CUR)
        return False
    finally:
        file.seek(position)
