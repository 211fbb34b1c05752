"""Decoding pictures, with every way a file can be broken turned into one clear line."""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from sparsemask.errors import UseError

# What Pillow raises on torn or hostile files, apart from operating-system errors.
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


@contextlib.contextmanager
def decoding(name: object) -> Iterator[None]:
    """Turn whatever goes wrong while decoding the file called `name` into a UseError that says so."""
    try:
        yield
    except FileNotFoundError:
        raise UseError(f"{name}: no such file") from None
    except UnidentifiedImageError:
        raise UseError(f"{name}: not readable as a picture (its format is none we know)") from None
    except OSError as error:
        # Pillow reports truncated data as an OSError without a number; one with a number is the system's.
        reason = error.strerror if error.errno else error
        raise UseError(f"{name}: not readable as a picture ({reason})") from None
    except _BROKEN as error:
        raise UseError(f"{name}: not readable as a picture ({error})") from None


def read_picture(path: str | os.PathLike | BinaryIO, name: object = None) -> np.ndarray:
    """Decode a picture of any mode to RGB.

    Args:
        path: a file, or an open binary stream (then say its `name` for messages).

    Returns:
        uint8 array (H, W, 3); grey is repeated, alpha is dropped.

    Raises:
        UseError: the file is missing, truncated or no picture.
    """
    with decoding(name or path), Image.open(path) as image:
        image.load()  # decodes all of it: truncation shows here and not later
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"mode {image.mode}: convert it to 8 bits a channel")
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))
