"""Weights of the classes in the loss: given, or by median frequency balancing.

Median frequency balancing (Eigen and Fergus, ICCV 2015, arXiv 1411.4734, section 6.3): a class's frequency is its
share of the labelled pixels of the images in which it occurs; its weight is the median of the frequencies divided by
its own. Classes that never occur have weight 1.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sparsemask.datasets import cache
from sparsemask.engine import distributed
from sparsemask.errors import UseError
from sparsemask.files import read_json, write_json
from sparsemask.VOC12.dataset import SegmentationDataset
from sparsemask.VOC12.lists import read_list
from sparsemask.VOC12.palette import IGNORE

AUTO = "auto"
_DIGITS = 6  # of counted weights
_SHOWN = 8  # classes whose weights are printed


@dataclass(frozen=True)
class ClassFrequencies:
    """Counts over the training labels.

    Attributes:
        pixels: (C,) int64, labelled pixels of each class.
        around: (C,) int64, labelled pixels of the labels in which it occurs.
        labels: labels that were counted.
    """

    pixels: np.ndarray
    around: np.ndarray
    labels: int

    @property
    def weights(self) -> np.ndarray:
        """Weight of each class, float64 (C,)."""
        occurs = self.pixels > 0
        frequency = np.divide(self.pixels, self.around, out=np.ones(len(self.pixels)), where=occurs)
        median = np.median(frequency[occurs]) if occurs.any() else 1.0
        weights = np.where(occurs, median / frequency, 1.0)
        return np.array([float(f"{weight:.{_DIGITS}g}") for weight in weights])

    def words(self, classes: Sequence[str]) -> str:
        """A line for the log."""
        named = [f"{name} {weight:.3g}" for name, weight in zip(classes, self.weights, strict=True)]
        more = f", ... ({len(named)} classes, all in config.yaml)" if len(named) > _SHOWN else ""
        return f"class weights by the frequency in {self.labels} training labels: {', '.join(named[:_SHOWN])}{more}"


def median_frequency(source: SegmentationDataset) -> ClassFrequencies:
    """Frequencies of the classes in a data set's labels; of files they are kept in the cache.

    Every process of a group calls it: the first counts, the others read what it kept.

    Raises:
        UseError: a label that is absent or broken.
    """
    kept = _cache_file(source)
    if kept is None:
        return _counted(source)
    found = _read(kept, source.n_class) if distributed.rank() == 0 else None
    if distributed.rank() == 0 and found is None:
        found = _counted(source)
        entries = {"pixels": found.pixels.tolist(), "around": found.around.tolist(), "labels": found.labels}
        with contextlib.suppress(OSError):  # a cache that may not be written costs time alone
            write_json(kept, entries)
    distributed.barrier()
    return found or _read(kept, source.n_class) or _counted(source)


def _counted(source: SegmentationDataset) -> ClassFrequencies:
    pixels, around = np.zeros((2, source.n_class), np.int64)
    times = Counter(label for _, label in source.pairs)  # a label that is listed twice counts twice
    for path, repeated in tqdm(times.items(), desc="counting classes", unit="label", disable=None, leave=False):
        counts = np.bincount(source.read(path).ravel(), minlength=IGNORE + 1)[: source.n_class]
        pixels += repeated * counts
        around += repeated * counts.sum() * (counts > 0)
    return ClassFrequencies(pixels, around, len(source.pairs))


def _cache_file(source: SegmentationDataset) -> Path | None:
    """Where the counts of these labels are kept; None where they are no files."""
    digest = hashlib.sha256()
    label_map = None if source.label_map is None else source.label_map.text()
    digest.update(json.dumps([type(source).__qualname__, source.n_class, source.ignore_index, label_map]).encode())
    for _, label in source.pairs:
        path = Path(label)
        if not path.is_file():
            return None
        status = path.stat()
        digest.update(f"\n{path.resolve()}\t{status.st_size}\t{status.st_mtime_ns}".encode())
    return cache() / "class_weights" / f"{digest.hexdigest()[:32]}.json"


def _read(path: Path, n_class: int) -> ClassFrequencies | None:
    """Counts as they were kept; None where there are none that fit."""
    with contextlib.suppress(UseError, OSError, KeyError, TypeError, ValueError, OverflowError):
        if path.is_file():
            entries = read_json(path)
            arrays = [np.array(entries[name], dtype=np.int64) for name in ("pixels", "around")]
            if all(array.shape == (n_class,) for array in arrays) and (arrays[0] <= arrays[1]).all():
                return ClassFrequencies(*arrays, int(entries["labels"]))
    return None


def read_weights(given: str, classes: Sequence[str]) -> np.ndarray:
    """The weights that --class_weights gives, float64 (C,).

    Args:
        given: numbers with commas between them, or a file with one a line.
        classes: names of the classes.

    Raises:
        UseError: no such file, a number that cannot be a weight, or not one for each class.
    """
    if Path(given).is_file():
        words, where = [line.rstrip(",") for line in read_list(given)], f"--class_weights {given}"
    else:
        words, where = given.split(","), "--class_weights"
    weights = []
    for k, word in enumerate(words):
        try:
            weight = float(word)
        except ValueError:
            if len(words) == 1:
                raise UseError(f"{where} {given}: no such file, no numbers with commas, and not '{AUTO}'") from None
            raise UseError(f"{where}: '{word.strip():.40}' is no number, expected the weight of class {k}") from None
        if not 0 <= weight < math.inf:
            raise UseError(f"{where}: {word.strip()} is no weight of a class, expected a finite number of 0 or more")
        weights.append(weight)
    if len(weights) != len(classes):
        raise UseError(f"{where}: {len(weights)} weights for {len(classes)} classes")
    if not any(weights):
        raise UseError(f"{where}: all weights are 0")
    return np.array(weights)


def spell_weights(weights: np.ndarray) -> str:
    """Weights as :func:`read_weights` takes them, every digit kept."""
    return ",".join(repr(float(weight)) for weight in weights)
