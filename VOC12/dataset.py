"""Images and labels as tensors: VOC, or any folder of images and index PNG with a list."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch.utils.data import Dataset

from sparsemask.errors import UseError
from sparsemask.files import distinct_names
from sparsemask.VOC12.augment import IMAGENET_MEAN, IMAGENET_STD, SCALES, Colours, augment, draw_view, pad
from sparsemask.VOC12.images import picture_size, read_picture, size_words
from sparsemask.VOC12.label_map import LabelMap, class_numbers
from sparsemask.VOC12.lists import load_class_names
from sparsemask.VOC12.palette import IGNORE, LabelRangeError, beyond_classes, read_label

Transform: TypeAlias = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
"""Augments an image uint8 (H, W, 3) and its label uint8 (H, W), 255 to ignore, by the generator alone; both may change
their size, to one that is the same for both."""


class SegmentationDataset(Dataset):
    """Pairs of an image and its label.

    Args:
        pairs: (image, label) files, as the functions of `sparsemask.VOC12.lists` return them.
        n_class: number of classes, 1 to 255; labels are 0 to n_class - 1, and 255 to ignore.
        classes: their names; the VOC names for 21 classes, else "class i".
        crop_size: side of a training view; least side of an evaluation view, in pixels.
        training: whether `dataset[i]` is a training view (from torch's random state) or the whole image.
        scales: the factors of which a training view takes one at random.
        mean: per channel, for values in [0, 1].
        std: per channel, for values in [0, 1].
        ignore_index: the number in label files, 0 to 255, that marks pixels to ignore; it becomes 255.
        label_map: classes of the numbers in label files; None: these are the classes.
        transform: one's own augmentation, before scale, crop and flip; see :data:`Transform`.

    Raises:
        UseError: no pairs, or impossible settings; at reading: a missing or truncated file, a label and a
            image of different sizes, a label beyond the classes, colours where indices are expected.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Path | str, Path | str]],
        n_class: int = 21,
        classes: Sequence[str] | None = None,
        crop_size: int = 513,
        training: bool = True,
        scales: Sequence[float] = SCALES,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        ignore_index: int = IGNORE,
        label_map: LabelMap | None = None,
        transform: Transform | None = None,
    ) -> None:
        if not len(pairs):
            raise UseError("the data set is empty: its list names no pictures")
        if not 1 <= n_class <= 255:
            raise UseError(f"{n_class} classes: label files hold 1 to 255 of them")
        if crop_size < 1 or not scales or min(scales) <= 0:
            raise UseError(f"crop {crop_size}, scales {list(scales)}: both must be positive")
        if not 0 <= ignore_index <= 255:
            raise UseError(f"--ignore_index {ignore_index}: label files hold 0 to 255")
        self.classes = list(classes) if classes is not None else load_class_names(None, n_class)
        if len(self.classes) != n_class:
            raise UseError(f"{len(self.classes)} class names for {n_class} classes")
        self.pairs = [(str(image), str(label)) for image, label in pairs]
        self.n_class = n_class
        self.crop_size = crop_size
        self.training = training
        self.scales = tuple(scales)
        self.colours = Colours(tuple(mean), tuple(std))
        self.ignore_index = ignore_index
        self.label_map = label_map
        self.transform = transform
        if label_map is not None:
            if len(label_map.names) != n_class:
                raise UseError(f"--label_map has {len(label_map.names)} classes, the data {n_class}")
            label_map.check_ignored(ignore_index)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Training view (see :meth:`sample`) or whole image (see :meth:`whole`), as `training` says."""
        if not self.training:
            return self.whole(index)
        return self.sample(index, np.random.default_rng(int(torch.randint(2**62, ()))))

    def name(self, index: int) -> str:
        """Name of an image: its file's, without suffix; with folders where two would have the same."""
        return self._names[index]

    @cached_property
    def _names(self) -> list[str]:
        return distinct_names([image for image, _ in self.pairs])

    def size(self, index: int) -> tuple[int, int]:
        """Height and width of an upright image, from its file's header."""
        return picture_size(self.pairs[index][0])

    def sample(self, index: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """The augmentation of one's own, then random scale, crop and flip, all from `rng`.

        Returns:
            image float32 (3, crop, crop), normalised; label int64 (crop, crop), 255 where padded.
        """
        image, label = self.load(index)
        if self.transform is not None:
            image, label = self.transform(image, label, rng)
            if wrong := beyond_classes(label, self.n_class):
                raise UseError(f"--augment: {wrong.partition(' (')[0]}, of {self.pairs[index][1]}")
        view = draw_view(label.shape, self.crop_size, self.scales, rng)
        return augment(image, label, view, self.crop_size, self.colours)

    def whole(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The image unscaled, padded (centred; mean and 255) to at least the crop size on each side.

        Returns:
            image float32 (3, H, W), normalised; label int64 (H, W).
        """
        image, label = self.load(index)
        return pad(image, label, self.crop_size, self.colours)

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Read and check a pair: image uint8 (H, W, 3), label uint8 (H, W)."""
        image_path, label_path = self.pairs[index]
        image, label = read_picture(image_path), self.read(label_path)
        if image.shape[:2] != label.shape:
            raise UseError(f"{label_path}: {size_words(label.shape, image_path, image.shape[:2])}")
        return image, label

    def read(self, path: str) -> np.ndarray:
        """Read and check a label, uint8 (H, W); other formats override this."""
        return self.class_numbers(read_label(path), path)

    def class_numbers(self, label: np.ndarray, path: str) -> np.ndarray:
        """The classes of a label as its file has it, checked, 255 where a pixel does not count."""
        label = class_numbers(label, self.n_class, self.ignore_index, self.label_map, path)
        if wrong := beyond_classes(label, self.n_class, self.ignore_index):
            raise LabelRangeError(f"{path}: {wrong}")
        return label
