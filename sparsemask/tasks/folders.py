"""Pairing pictures with labels in the folders of published data sets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sparsemask.errors import UseError
from sparsemask.files import must_exist

_JPEG = (".jpg", ".jpeg")

Pair = tuple[Path, Path]


def folder_pairs(images: Path, labels: Path, suffixes: Sequence[str] = (".png",)) -> list[Pair]:
    """All pictures of a folder with the labels of the same stem in another, or in the same one; sorted by name.

    Args:
        images: holds .jpg; .png count as pictures too where the labels are elsewhere.
        suffixes: of labels, the first that exists is taken.

    Raises:
        UseError: no such folder, no pictures in it, or absent labels (the first is named, all are counted).
    """
    must_exist(images, "picture folder")
    must_exist(labels, "label folder")
    kinds = _JPEG if images == labels else (*_JPEG, ".png")
    pictures = sorted(path for path in images.iterdir() if path.suffix.lower() in kinds)
    if not pictures:
        raise UseError(f"{images}: no pictures ({', '.join(kinds)}) in this folder")
    present = {path.name for path in labels.iterdir()}
    pairs, absent = [], []
    for picture in pictures:
        name = next((picture.stem + s for s in suffixes if picture.stem + s in present), None)
        pairs.append((picture, labels / (name or picture.stem + suffixes[0])))
        if name is None:
            absent.append(pairs[-1][1])
    if absent:
        raise UseError(f"{labels}: {len(absent)} of {len(pairs)} labels absent, first {absent[0].name}")
    return pairs
