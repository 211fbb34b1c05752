"""Images and labels in the folders of published data sets, and maps of yes and no in grey."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.files import must_exist
from sparsemask.VOC12.dataset import SegmentationDataset
from sparsemask.VOC12.images import SUFFIXES, decoding, grey_levels, is_deep, is_picture, upright
from sparsemask.VOC12.palette import read_label

Pair = tuple[Path, Path]


def folder_pairs(images: Path, labels: Path, suffixes: Sequence[str] = (".png",)) -> list[Pair]:
    """All images of a folder with the labels of the same stem in another, or in the same one; sorted by name.

    Args:
        images: holds images with any of SUFFIXES; those of labels count as images only where labels are elsewhere.
        suffixes: of labels, in any case; the first that exists is taken.

    Raises:
        UseError: no such folder, no images in it, or absent labels (the first is named, all are counted).
    """
    must_exist(images, "picture folder")
    must_exist(labels, "label folder")
    kinds = [suffix for suffix in SUFFIXES if images != labels or suffix not in suffixes]
    image_paths = sorted(path for path in images.iterdir() if is_picture(path) and path.suffix.lower() in kinds)
    if not image_paths:
        raise UseError(f"{images}: no pictures ({', '.join(kinds)}) in this folder")
    present = {path.stem + path.suffix.lower(): path.name for path in labels.iterdir()}
    pairs, absent = [], []
    for image_path in image_paths:
        name = next((present[image_path.stem + s] for s in suffixes if image_path.stem + s in present), None)
        pairs.append((image_path, labels / (name or image_path.stem + suffixes[0])))
        if name is None:
            absent.append(pairs[-1][1])
    if absent:
        raise UseError(f"{labels}: {len(absent)} of {len(pairs)} labels absent, first {absent[0].name}")
    return pairs


class MapDataset(SegmentationDataset):
    """Images with labels of 0 (no), 1 (yes) and 255 (ignored)."""

    def __init__(self, pairs: list[tuple[Path, Path]], classes: tuple[str, str], **settings):
        super().__init__(pairs, 2, classes, **settings)


def as_label(label: Any, name: object = "label") -> np.ndarray:
    """A label of any kind as class indices, uint8 (H, W).

    Args:
        label: a file, a Pillow image of one channel, an array or a tensor (H, W) of whole numbers 0 to 255.
        name: what messages call it.

    Raises:
        UseError: none of these.
    """
    if isinstance(label, str | Path):
        return read_label(label)
    if isinstance(label, Tensor):
        label = label.detach().cpu().numpy()
    values = np.asarray(label)
    whole = values.dtype.kind in "iub"
    if isinstance(label, Image.Image) and label.mode not in ("P", "L", "1", "I", "I;16"):
        whole = False
    if values.ndim != 2 or not whole or (values.size and not 0 <= int(values.min()) <= int(values.max()) <= 255):
        raise UseError(
            f"{name}: a label is an array (H, W) of class numbers 0 to 255, not {values.dtype} {values.shape}"
        )
    return values.astype(np.uint8)


def read_grey(path: str | os.PathLike) -> np.ndarray:
    """A map of 0 to 255 from an image file of any mode, uint8 (H, W); 16 bits and floats are scaled like images'.

    Raises:
        UseError: a missing or broken file, or 0 and 1 where 0 and 255 are meant.
    """
    with decoding(path), Image.open(path) as image:
        image.load()
        turned = upright(image)
        grey = np.rint(grey_levels(turned)[0]).astype(np.uint8) if is_deep(turned) else np.array(turned.convert("L"))
    if grey.size and grey.max() == 1:
        raise UseError(f"{path}: its values are 0 and 1, expected 0 to 255 (white for yes)")
    return grey
