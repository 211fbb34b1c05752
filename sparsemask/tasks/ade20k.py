"""Scene parsing on ADE20K: segmentation with 150 classes, pixel accuracy and mean IoU.

--data_root is the challenge's folder (ADEChallengeData2016) or the one above it: images/{training,validation}/*.jpg,
annotations/{training,validation}/*.png and objectInfo150.txt. The value 0 means other things: it is ignored, and
value k is class k - 1. --training_list and --eval_list may name a part of the pictures, a line each.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.files import must_exist
from sparsemask.tasks.dense import IGNORE, DenseTask
from sparsemask.tasks.folders import Pair, folder_pairs
from sparsemask.tasks.segmentation import SegmentationTask
from VOC12.dataset import SegmentationDataset
from VOC12.lists import LABEL_SUFFIXES, load_class_names, pairs_from_lists, read_list
from VOC12.palette import read_label

CLASSES = 150
_INFO = "objectInfo150.txt"
_FOLDERS = {"training": "training", "eval": "validation"}


class Ade20kDataset(SegmentationDataset):
    """Pictures with their class indices; the files' 0 is 255 here, all others are one less."""

    def read(self, path: str) -> np.ndarray:
        """Class indices, uint8 (H, W)."""
        label = read_label(path)
        if label.size and label.max() > self.n_class:
            raise UseError(f"{path}: label {label.max()} beyond the {self.n_class} classes (0 is ignored)")
        return label - np.uint8(1)  # 0 wraps to 255


class Ade20kTask(SegmentationTask):
    """Segmentation of ADE20K."""

    primary = "miou"
    reads_indices = reads_voc = False
    pairs = DenseTask.pairs

    @staticmethod
    def sample_folder() -> Path:
        """The embedded sample set in ADE20K's layout."""
        from sparsemask.tasks.shapes import ade20k_sample

        return ade20k_sample()

    def class_names(self) -> list[str]:
        """From --class_names, the folder's objectInfo150.txt, or numbers."""
        o = self.options
        if o.class_names:
            return read_list(o.class_names)
        root = self.sample_folder() if o.sample else o.data_root
        file = ade20k_root(Path(root)) / _INFO if root else None
        return object_names(file) if file is not None and file.is_file() else load_class_names(None, CLASSES)

    def layout(self, root: Path, which: str) -> list[Pair]:
        """The pictures of images/training or images/validation, or those that a list names."""
        root, part = ade20k_root(root), _FOLDERS[which]
        images, labels = root / "images" / part, root / "annotations" / part
        listed = getattr(self.options, f"{which}_list")
        return pairs_from_lists(images, labels, listed) if listed else folder_pairs(images, labels, LABEL_SUFFIXES)

    def dataset(self, pairs: list[Pair], **settings) -> Ade20kDataset:
        """Pictures with their class indices."""
        return Ade20kDataset(pairs, self.n_class, self.classes, **settings)


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
