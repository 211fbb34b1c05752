"""BSDS500: its folders, and the boundaries of several annotators for every image."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from sparsemask.errors import UseError
from sparsemask.files import must_exist
from sparsemask.tasks.dense.data import MapDataset, Pair, folder_pairs, read_grey
from sparsemask.VOC12.lists import LABEL_SUFFIXES
from sparsemask.VOC12.palette import IGNORE

SPLITS = {"train": ("train",), "val": ("val",), "test": ("test",), "trainval": ("train", "val")}


def bsds_pairs(root: Path, split: str) -> list[Pair]:
    """(image, label) paths of train, val, test or trainval.

    Args:
        root: the folder with images/ and groundTruth/, or one of those above it in the archive (BSDS500, BSR). Labels
            are .mat, or .png.
    """
    if split not in SPLITS:
        raise UseError(f"no split '{split}'; known: {', '.join(SPLITS)}")
    must_exist(root, "data folder")
    for below in ("", "data", "BSDS500/data", "BSR/BSDS500/data"):
        if (root / below / "images").is_dir():
            root = root / below
            break
    parts = SPLITS[split]
    return [
        pair
        for part in parts
        for pair in folder_pairs(root / "images" / part, root / "groundTruth" / part, (".mat", *LABEL_SUFFIXES))
    ]


def read_annotations(path: str | os.PathLike) -> np.ndarray:
    """Boundaries of every annotator, float64 (K, H, W) in [0, 1].

    Args:
        path: a .mat of BSDS500 (cell array groundTruth, each with Boundaries: 0 and 1), or a grey PNG: one map, whose
            grey values are the shares of annotators (0 to 255).

    Raises:
        UseError: missing, truncated, or no such file; annotators of different sizes.
    """
    path = Path(path)
    if path.suffix.lower() != ".mat":
        return read_grey(path)[None] / 255.0
    must_exist(path, "ground truth")
    try:
        cells = loadmat(path, variable_names=["groundTruth"])["groundTruth"].ravel()
        maps = [np.asarray(cell["Boundaries"][0, 0]) for cell in cells]
    except Exception as error:  # a truncated or foreign file makes the reader fail in a dozen ways, none of them ours
        reason = f"{type(error).__name__}: {error}"
        raise UseError(f"{path}: not readable as BSDS500 ground truth, groundTruth.Boundaries ({reason})") from None
    shapes = {annotation.shape for annotation in maps}
    if len(shapes) != 1 or any(annotation.ndim != 2 or annotation.dtype.kind not in "buif" for annotation in maps):
        description = ", ".join(f"{annotation.shape} {annotation.dtype}" for annotation in maps) or "none"
        raise UseError(f"{path}: groundTruth.Boundaries must be maps (H, W) of one size, found {description}")
    return np.stack([annotation > 0 for annotation in maps]).astype(np.float64)


def consensus(annotations: np.ndarray) -> np.ndarray:
    """Training label uint8 (H, W) of annotations (K, H, W): 1 where more than half agree, 0 where nobody marked.

    What lies between is 255, ignored (Liu et al. 2017, "Richer Convolutional Features for Edge Detection", η = 0.5).
    """
    share = annotations.mean(0)
    label = np.full(share.shape, IGNORE, np.uint8)
    label[share == 0] = 0
    label[share > 0.5] = 1
    return label


class EdgesDataset(MapDataset):
    """Images with their boundaries."""

    def read(self, path: str) -> np.ndarray:
        """The annotators' consensus, uint8 (H, W): 0, 1, or 255 where they disagree."""
        return consensus(read_annotations(path))

    def truths(self, index: int) -> list[np.ndarray]:
        """Every annotator's boundaries, bool (H, W); those of a PNG, which may be broad, are thinned."""
        from skimage.morphology import thin

        path = self.pairs[index][1]
        maps = [annotation > 0.5 for annotation in read_annotations(path)]
        return maps if path.endswith(".mat") else [thin(annotation) for annotation in maps]
