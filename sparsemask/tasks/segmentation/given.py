"""Segmentation of pictures that a program holds: any sequences of (picture, label), files or arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence, Sized
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from sparsemask.errors import UseError
from sparsemask.prediction import as_rgb
from sparsemask.tasks.dense.data import as_label
from sparsemask.tasks.segmentation.task import SegmentationTask
from sparsemask.VOC12.dataset import SegmentationDataset

WHERE = "pictures of a program"  # what configurations say in place of a folder


class GivenPictures(SegmentationDataset):
    """Pairs of a picture and its label out of a sequence.

    Args:
        pairs: their names, twice, as the base class has paths.
        items: (picture, label) of each: a picture as :func:`sparsemask.prediction.as_rgb` takes it, a label as
            :func:`as_label` does.
        settings: of :class:`SegmentationDataset`.
    """

    def __init__(self, pairs: Sequence[tuple[Path | str, Path | str]], items: Sequence[Any], **settings: Any):
        super().__init__(pairs, **settings)
        self.items = items
        self._numbers = {label: int(Path(label).stem) for _, label in self.pairs}

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """See :meth:`SegmentationDataset.load`."""
        name = self.pairs[index][1]
        image, label = as_rgb(self._item(name)[0]), self.read(name)
        if image.shape[:2] != label.shape:
            raise UseError(f"{name}: the label has {label.shape} pixels, its picture {image.shape[:2]}")
        return image, label

    def read(self, path: str) -> np.ndarray:
        """See :meth:`SegmentationDataset.read`."""
        return self.class_numbers(as_label(self._item(path)[1], path), path)

    def size(self, index: int) -> tuple[int, int]:
        """See :meth:`SegmentationDataset.size`."""
        height, width = self.read(self.pairs[index][1]).shape
        return height, width

    def _item(self, name: str) -> Sequence[Any]:
        return pair_of(self.items[self._numbers[name]], name)


class GivenTask(SegmentationTask):
    """Segmentation of given pictures; :func:`given_task` makes a class of it for some.

    Attributes:
        sets: (picture, label) pairs by the name of the set, "training" and "eval".
        names: of the classes.
    """

    sets: ClassVar[dict[str, Sequence[Any]]] = {}
    names: ClassVar[tuple[str, ...]] = ()
    reads_voc = False

    def class_names(self) -> list[str]:
        """The names of the classes."""
        return list(self.names)

    def pairs(self, split: str) -> list[tuple[Path, Path]]:
        """Names in place of paths: the set and a number."""
        numbers = range(len(self.sets[split]))
        return [(Path(split, f"{k:06d}"), Path(split, f"{k:06d}")) for k in numbers]

    def dataset(self, pairs: list[tuple[Path, Path]], **settings: Any) -> SegmentationDataset:
        """The pictures."""
        items = self.sets[pairs[0][0].parts[0]] if pairs else ()
        return GivenPictures(pairs, items, **self.label_settings(), **settings)

    def measured_on(self) -> str:
        """Description of the validation pictures."""
        return f"validation pictures, {WHERE}"


def pair_of(item: Any, name: str) -> Sequence[Any]:
    """A (picture, label) pair as a data set gave it; UseError for anything else, by its name."""
    if not isinstance(item, Sequence | np.ndarray) or len(item) != 2:
        raise UseError(f"{name}: expected a pair (picture, label), found {type(item).__name__}")
    return item


def _indexed(items: Any, argument: str) -> Sequence[Any]:
    """What is indexed: the pairs themselves, or a loader's data set."""
    if isinstance(items, DataLoader):
        items = items.dataset
    if isinstance(items, IterableDataset) or not isinstance(items, Sized):
        raise UseError(
            f"{argument}: {type(items).__name__} has no length and indices: give a list of pairs (picture, label), a "
            "data set with indices, or a DataLoader of one"
        )
    return items


def given_task(train: Sequence[Any], val: Sequence[Any], classes: Sequence[str]) -> type[GivenTask]:
    """A task on some pictures; the same pictures make a task of the same name.

    Args:
        train: (picture, label) pairs to train on: a list, or anything with a length and indices, as torch's datasets;
            of a ``DataLoader`` its data set is taken, since batches are made of augmented crops.
        val: those to validate on.
        classes: names of the classes.

    Raises:
        UseError: no pictures, no pairs, or no class names.
    """
    train, val = _indexed(train, "train"), _indexed(val, "val")
    if not len(train) or not len(val):
        raise UseError(f"{len(train)} training and {len(val)} validation pictures: both need one or more")
    if isinstance(classes, str) or not 1 <= len(classes) <= 255:
        raise UseError("classes: give the names of 1 to 255 classes, in the order of their numbers")
    digest = hashlib.sha256(repr((len(train), len(val), tuple(map(str, classes)))).encode())
    for items in (train, val):
        for k in {0, len(items) - 1}:
            image, label = pair_of(items[k], f"item {k}")
            digest.update(as_rgb(image).tobytes() + as_label(label).tobytes())
    members = {"sets": {"training": train, "eval": val}, "names": tuple(map(str, classes))}
    return type(f"Given_{digest.hexdigest()[:12]}", (GivenTask,), {**members, "__doc__": GivenTask.__doc__})
