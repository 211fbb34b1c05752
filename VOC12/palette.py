"""Label maps: the VOC colours, and reading and writing class indices as single-channel PNG.

A label is a uint8 array (H, W) of class indices; 255 marks pixels to ignore. Palette PNG are read by their
indices, never through RGB: a reader that turns them into colours silently destroys the classes.
"""

from __future__ import annotations

import io
import os
from typing import BinaryIO, Literal

import numpy as np
from PIL import Image

from sparsemask.errors import UseError
from sparsemask.VOC12.bulk import write_bulk
from sparsemask.VOC12.images import decoding, upright

IGNORE = 255
VOC_CLASSES = (
    "background aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike "
    "person pottedplant sheep sofa train tvmonitor"
).split()


def _voc_colours() -> np.ndarray:
    # The devkit's VOClabelcolormap: bits 0, 1, 2 of the index are the top bits of r, g, b, and so on.
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for depth in range(8):
        for channel in range(3):
            colours[:, channel] |= (((index >> (3 * depth + channel)) & 1) << (7 - depth)).astype(np.uint8)
    return colours


VOC_COLOURS = _voc_colours()  # (256, 3) uint8; 255 is the devkit's "void" colour 224, 224, 192


class ColourLabelError(UseError):
    """A label holds colours where class indices are expected."""


class LabelRangeError(UseError):
    """A label holds numbers beyond the classes."""


def _keys(rgb: np.ndarray) -> np.ndarray:
    rgb = rgb.astype(np.int32)
    return (rgb[..., 0] << 16) | (rgb[..., 1] << 8) | rgb[..., 2]


def encode_colours(rgb: np.ndarray, n_class: int = 21, name: object = "label") -> np.ndarray:
    """Convert VOC colours to class indices.

    Args:
        rgb: uint8 (..., 3).
        n_class: number of colours that are classes; void becomes 255.
        name: what the file is called in messages.

    Returns:
        uint8 (...).

    Raises:
        ColourLabelError: a colour is none of the first `n_class` VOC colours nor void.
    """
    index = np.append(np.arange(n_class), IGNORE).astype(np.uint8)
    class_keys = _keys(VOC_COLOURS[index])
    order = np.argsort(class_keys)
    pixel_keys = _keys(rgb)
    nearest = order[np.searchsorted(class_keys, pixel_keys, sorter=order).clip(max=n_class)]
    wrong = class_keys[nearest] != pixel_keys
    if wrong.any():
        colour = tuple(int(value) for value in rgb[wrong][0])
        raise ColourLabelError(
            f"{name}: {int(wrong.sum())} pixels have no VOC colour (first {colour}); "
            "labels must be the devkit's colours or class indices"
        )
    return index[nearest]


def colourise(label: np.ndarray) -> np.ndarray:
    """Turn class indices (...), 0 to 255, into VOC colours (..., 3) uint8."""
    return VOC_COLOURS[label]


def beyond_classes(label: np.ndarray, n_class: int, ignored: int = IGNORE) -> str | None:
    """Message, with advice, about values beyond the classes in a uint8 label; None where there are none.

    Args:
        label: class indices; pixels to ignore are 255, whatever they are in the file.
        n_class: number of classes.
        ignored: their value in the file.
    """
    wrong = out_of_range(label, n_class)
    if not wrong:
        return None
    values = ", ".join(map(str, wrong[:5])) + (", ..." if len(wrong) > 5 else "")
    advice = f"--n_class {wrong[-1] + 1}" if wrong[-1] < IGNORE - 1 else "--n_class"
    if len(wrong) == 1:
        advice += f", or --ignore_index {wrong[0]} where it marks pixels that do not count"
    return f"label {values} beyond the {n_class} classes ({ignored} is ignored): {advice}"


def apply_ignored(label: np.ndarray, ignored: int, n_class: int, name: object) -> np.ndarray:
    """Replace the ignored value of a label by 255.

    Args:
        label: uint8 (H, W).
        ignored: the value in the file that marks pixels to ignore.
        n_class: number of classes, for the message.
        name: what the file is called in messages.

    Raises:
        LabelRangeError: the file holds 255 although another value is ignored.
    """
    if ignored == IGNORE:
        return label
    if (label == IGNORE).any():
        raise LabelRangeError(
            f"{name}: label 255 beyond the {n_class} classes ({ignored} is ignored): leave --ignore_index out, "
            "or write class numbers for it"
        )
    return np.where(label == ignored, np.uint8(IGNORE), label)


def out_of_range(label: np.ndarray, n_class: int) -> list[int]:
    """Values of a uint8 label that are neither a class below `n_class` nor 255; cheap when there are none."""
    # 255 + 1 wraps to 0, so one maximum over the bytes answers for both limits.
    if label.size == 0 or int((label + np.uint8(1)).max()) <= n_class:
        return []
    return [int(value) for value in np.unique(label) if n_class <= value < IGNORE]


def read_label(
    path: str | os.PathLike | BinaryIO, colours: Literal["refuse", "decode"] = "refuse", name: object = None
) -> np.ndarray:
    """Read a label map as class indices, uint8 (H, W).

    Args:
        path: palette PNG (its indices), grey or 1-bit PNG (its values), or an open binary stream of one.
        colours: what to do with an RGB file: refuse it, or decode the 21 VOC colours. With "decode", a
            palette whose entries are VOC colours in another order (some PNG optimisers do that) is decoded
            by colour too.
        name: what to call the file in messages.

    Raises:
        ColourLabelError: colours where indices are expected, or unknown colours.
        UseError: missing, truncated or no single-channel image of at most 255.
    """
    name = name or path
    with decoding(name), Image.open(path) as image:
        image.load()
        if image.format in ("JPEG", "MPO"):
            raise ValueError("a JPEG, whose compression changes class numbers: labels are PNG, BMP, TIFF or GIF")
        mode, label = image.mode, np.array(upright(image))
        palette = image.getpalette() if mode == "P" else None
    if mode in ("RGB", "RGBA"):
        if colours != "decode":
            raise ColourLabelError(
                f"{name}: an RGB picture where class indices are expected; VOC12/convert_labels.py converts VOC colours"
            )
        return encode_colours(label[..., :3], name=name)
    if label.ndim != 2 or mode.startswith("F"):
        raise UseError(f"{name}: mode {mode} is no label; expected a single-channel index PNG")
    if label.dtype != np.uint8:
        if label.size and not 0 <= int(label.min()) <= int(label.max()) <= 255:
            raise UseError(f"{name}: values {label.min()} to {label.max()}; labels go from 0 to 255")
        label = label.astype(np.uint8)
    if colours == "decode" and palette is not None:
        label = _in_voc_order(label, np.array(palette, np.uint8).reshape(-1, 3))
    return label


def _in_voc_order(label: np.ndarray, palette: np.ndarray) -> np.ndarray:
    used = np.unique(label)
    if used.size == 0 or used[-1] >= len(palette) or (palette[used] == VOC_COLOURS[used]).all():
        return label
    try:
        encoded = encode_colours(palette[used])
    except ColourLabelError:
        return label  # colours of someone's own: the indices are all there is
    return encoded[np.searchsorted(used, label)]


def save_label(path: str | os.PathLike, label: np.ndarray) -> None:
    """Write class indices (H, W), 0 to 255, as a palette PNG in VOC colours, whole or not at all."""
    label = np.asarray(label)
    if label.ndim != 2 or (label.size and not 0 <= int(label.min()) <= int(label.max()) <= 255):
        raise UseError(f"{path}: a label is a (H, W) array of 0 to 255, not {label.shape} {label.dtype}")
    image = Image.fromarray(np.ascontiguousarray(label, dtype=np.uint8))
    image.putpalette(VOC_COLOURS.tobytes())
    file = io.BytesIO()
    image.save(file, format="PNG")
    write_bulk(path, file.getvalue())
