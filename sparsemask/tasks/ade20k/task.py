"""Scene parsing on ADE20K: segmentation with 150 classes, pixel accuracy and mean IoU.

Where images lie: :mod:`sparsemask.tasks.ade20k.data`.
"""

from __future__ import annotations

from pathlib import Path

from sparsemask.tasks.ade20k.data import Ade20kDataset, ade20k_root, object_names
from sparsemask.tasks.dense.data import Pair, folder_pairs
from sparsemask.tasks.dense.task import DenseTask
from sparsemask.tasks.segmentation.task import SegmentationTask
from sparsemask.VOC12.lists import LABEL_SUFFIXES, load_class_names, pairs_from_lists, read_list

CLASSES = 150
_INFO = "objectInfo150.txt"
_FOLDERS = {"training": "training", "eval": "validation"}


class Ade20kTask(SegmentationTask):
    """Segmentation of ADE20K."""

    primary = "miou"
    reads_indices = reads_voc = False
    pairs = DenseTask.pairs

    @staticmethod
    def sample_folder() -> Path:
        """The embedded sample set in ADE20K's layout."""
        from sparsemask.synthetic.dense_tasks import ade20k_sample

        return ade20k_sample()

    def class_names(self) -> list[str]:
        """From --class_names, the folder's objectInfo150.txt, or numbers."""
        config = self._config
        if config.data.class_names:
            return read_list(config.data.class_names)
        root = self.sample_folder() if config.data.sample else config.data.data_root
        file = ade20k_root(Path(root)) / _INFO if root else None
        return object_names(file) if file is not None and file.is_file() else load_class_names(None, CLASSES)

    def layout(self, root: Path, split: str) -> list[Pair]:
        """The images of images/training or images/validation, or those that a list names."""
        root, subfolder = ade20k_root(root), _FOLDERS[split]
        images, labels = root / "images" / subfolder, root / "annotations" / subfolder
        listed = self.config[f"{split}_list"]
        return pairs_from_lists(images, labels, listed) if listed else folder_pairs(images, labels, LABEL_SUFFIXES)

    def dataset(self, pairs: list[Pair], **settings) -> Ade20kDataset:
        """Images with their class indices."""
        return Ade20kDataset(pairs, self.n_class, self.classes, **settings)
