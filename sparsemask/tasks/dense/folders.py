"""Pairing images with labels in the folders of published data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsemask.errors import UseError
from sparsemask.files import must_exist
from sparsemask.VOC12.images import SUFFIXES, is_picture

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
