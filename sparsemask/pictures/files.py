"""Image files to arrays and back: grey or colour, 8 or 16 bits, palette, alpha, camera orientation."""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from sparsemask.containers import stand_in
from sparsemask.errors import UseError, one_line
from sparsemask.files import write_bytes
from sparsemask.VOC12.images import deep_colours, grey_levels, is_deep, upright

# Formats that are written, by suffix; and which of them have room for alpha and for 16 bits of grey.
WRITTEN = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF"
}  # fmt: skip
_ALPHA, _DEEP = {"PNG", "WEBP", "TIFF"}, {"PNG", "TIFF"}


@dataclass
class Picture:
    """A decoded image; colours are not multiplied by alpha."""

    colour: np.ndarray
    """float32 (H, W, 3), 0 to 255; of a grey picture three times the same."""
    alpha: np.ndarray | None = None
    """uint8 (H, W), or None without."""
    grey: bool = False
    deep: bool = False
    """16 bits a value (grey only: the decoder has no deep colours)."""
    notes: dict = field(default_factory=dict)
    """What is written back with it: colour profile, resolution."""
    remarks: list[str] = field(default_factory=list)
    """What reading changed beyond the file's format, in words."""

    @property
    def size(self) -> str:
        """'640x480'."""
        return f"{self.colour.shape[1]}x{self.colour.shape[0]}"

    def enlarged(self, colour: np.ndarray) -> Picture:
        """The same image with the colours (s·H, s·W, 3) of a larger one, its alpha enlarged by bicubic."""
        alpha = self.alpha
        if alpha is not None:
            alpha = np.asarray(Image.fromarray(alpha).resize(colour.shape[1::-1], Image.Resampling.BICUBIC))
        return replace(self, colour=colour, alpha=alpha)


def read_picture(path: str | os.PathLike) -> Picture:
    """Read an image of any kind; UseError where it is missing, truncated, no image, or unreasonably large."""
    path = Path(path)
    if path.is_dir():
        raise UseError(f"{path}: is a folder, expected a picture")
    if not path.exists():
        raise UseError(f"picture not found: {path}")
    return decode_picture(path, path)


def decode_picture(file: Path | BinaryIO, name: object) -> Picture:
    """Decode a file or an open binary stream that messages call `name`; errors as for :func:`read_picture`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, and of sizes that are large but possible
            with Image.open(file) as opened:
                remarks = ["16 bits a colour became 8"] if deep_colours(opened) else []
                opened.load()
                return _decoded(opened, remarks)
    except UnidentifiedImageError:
        why = stand_in(file) if isinstance(file, Path) else ""
        raise UseError(f"{name}: {why or 'not a picture that can be read'}") from None
    except Image.DecompressionBombError as error:
        raise UseError(f"{name}: {one_line(error).split(',')[0]}") from None
    except (OSError, ValueError, SyntaxError, EOFError, OverflowError, MemoryError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise UseError(f"{name}: truncated or not a picture ({one_line(error)[:160]})") from None


def _decoded(opened: Image.Image, remarks: list[str]) -> Picture:
    notes = {k: opened.info[k] for k in ("icc_profile", "dpi") if opened.info.get(k)}
    turned = upright(opened)
    if is_deep(turned):
        levels, note = grey_levels(turned)
        deep = turned.mode != "F"  # 16 bits stay 16 where the result is written as such
        return Picture(
            _tripled(levels), grey=True, deep=deep, notes=notes, remarks=remarks if deep else [*remarks, note]
        )
    alpha = None
    if "A" in turned.getbands() or "a" in turned.getbands() or "transparency" in turned.info:
        turned = turned.convert("RGBA")  # palettes with a transparent colour too
        alpha = np.array(turned.getchannel("A"))
    grey = opened.mode in ("1", "L", "LA", "La")
    if opened.mode == "CMYK":
        notes.pop("icc_profile", None)  # of inks; the colours are RGB from here
    return Picture(np.asarray(turned.convert("RGB"), dtype=np.float32), alpha, grey, notes=notes, remarks=remarks)


def _tripled(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values[..., None].repeat(3, axis=2))


def check_output(path: str | os.PathLike) -> Path:
    """Return the path if an image can be written there; UseError otherwise."""
    path = Path(path)
    if path.suffix.lower() not in WRITTEN:
        raise UseError(f"{path}: a picture's name must end in one of {', '.join(WRITTEN)}")
    if path.is_dir():
        raise UseError(f"{path}: is a folder, expected the name of the picture to write")
    if not path.parent.is_dir():
        raise UseError(f"{path}: no such folder: {path.parent}")
    return path


def write_picture(path: str | os.PathLike, image: Picture) -> list[str]:
    """Write an image atomically in the format of its suffix; returns notes on what the format could not hold."""
    path = check_output(path)
    data, lost = encode_picture(image, WRITTEN[path.suffix.lower()])
    write_bytes(path, data)
    return lost


def encode_picture(image: Picture, form: str) -> tuple[bytes, list[str]]:
    """The content of an image's file in a format of :data:`WRITTEN`, and notes on what it could not hold."""
    lost = []
    deep = image.deep and form in _DEEP and image.alpha is None
    if image.deep and not deep:
        lost.append("16 bits became 8")
    if image.grey:
        values = image.colour.mean(axis=2)
    else:
        values = image.colour
    if deep:
        result = Image.fromarray(np.clip(np.rint(values * 257), 0, 65535).astype(np.uint16))
    else:
        result = Image.fromarray(np.clip(np.rint(values), 0, 255).astype(np.uint8))
    if image.alpha is not None:
        if form in _ALPHA:
            result.putalpha(Image.fromarray(image.alpha))
        else:
            lost.append(f"{form} has no transparency")
    options = {"JPEG": {"quality": 95}, "WEBP": {"lossless": True}}.get(form, {})
    notes = {k: v for k, v in image.notes.items() if k != "dpi" or form != "WEBP"}
    return encoded(result, form, **options, **notes), lost


def encoded(image: Image.Image, form: str, **options) -> bytes:
    """The file's content of an image."""
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()
