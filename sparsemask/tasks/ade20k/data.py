"""ADE20K as published for the scene parsing challenge.

--data_root is the challenge's folder (ADEChallengeData2016) or the one above it: images/{training,validation}/*.jpg,
annotations/{training,validation}/*.png and objectInfo150.txt. The value 0 means other things: it is ignored, and
value k is class k - 1. --training_list and --eval_list may name a part of the images, a line each.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.files import must_exist
from sparsemask.VOC12.dataset import SegmentationDataset
from sparsemask.VOC12.lists import read_list
from sparsemask.VOC12.palette import IGNORE, read_label


class Ade20kDataset(SegmentationDataset):
    """Images with their class indices; the files' 0 is 255 here, all others are one less."""

    def read(self, path: str) -> np.ndarray:
        """Class indices, uint8 (H, W)."""
        label = read_label(path)
        if label.size and label.max() > self.n_class:
            raise UseError(f"{path}: label {label.max()} beyond the {self.n_class} classes (0 is ignored)")
        return label - np.uint8(1)  # 0 wraps to 255


def ade20k_root(root: Path) -> Path:
    """The folder with images/ and annotations/: the one given or ADEChallengeData2016 in it."""
    must_exist(root, "data folder")
    inner = root / "ADEChallengeData2016"
    return inner if inner.is_dir() else root


def object_names(path: Path) -> list[str]:
    """The first name of every class of an objectInfo150.txt: a header, then rows that end in a tab and the names."""
    rows = [line.split("\t") for line in read_list(path)[1:]]
    names = [row[-1].split(",")[0].strip() for row in rows]
    numbers = [row[0].strip() for row in rows]
    if not names or numbers != [str(i) for i in range(1, len(names) + 1)] or len(names) >= IGNORE:
        raise UseError(f"{path}: expected a header and a row for each class, numbered from 1, its names after a tab")
    return names
