"""Scores of boundary detection as the Berkeley benchmark defines them (Arbeláez et al. 2011): ODS, OIS, AP, R50."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sparsemask.tasks.edges.matching import match, tolerance
from sparsemask.tasks.edges.thinning import thin_edges
from sparsemask.tasks.protocol import Scores

THRESHOLDS = np.arange(1, 100) / 100  # the benchmark's 99
_QUICK = THRESHOLDS[9::10]  # 0.1, 0.2 … 0.9


def picture_counts(strength: np.ndarray, truths: Sequence[np.ndarray], thresholds: np.ndarray) -> np.ndarray:
    """Counts of one image at every threshold.

    Args:
        strength: thinned edge strengths (H, W) in [0, 1].
        truths: boundaries bool (H, W), one an annotator.

    Returns:
        (T, 4): true pixels matched, true pixels (both summed over the annotators), predicted pixels that a match
        with any annotator has, predicted pixels.
    """
    from skimage.morphology import thin

    away, total = tolerance(strength.shape), sum(int(truth.sum()) for truth in truths)
    counts = np.zeros((len(thresholds), 4), np.int64)
    before = -1
    for k, threshold in enumerate(thresholds):
        edges = strength >= threshold
        size = int(edges.sum())
        if size == before:  # thresholds only ever remove pixels: as many are the same ones
            counts[k] = counts[k - 1]
            continue
        before = size
        edges = thin(edges)
        matched_edges, recalled = np.zeros_like(edges), 0
        for truth in truths:
            predicted, true = match(edges, truth, away)
            matched_edges |= predicted
            recalled += int(true.sum())
        counts[k] = recalled, total, matched_edges.sum(), edges.sum()
    return counts


def precision_recall(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Precision, recall and their harmonic mean F of counts (…, 4); 0 where a divisor is 0."""
    counts = np.asarray(counts, np.float64)
    recall = counts[..., 0] / np.maximum(counts[..., 1], 1)
    precision = counts[..., 2] / np.maximum(counts[..., 3], 1)
    total = precision + recall
    return precision, recall, np.divide(2 * precision * recall, total, out=np.zeros_like(total), where=total > 0)


@dataclass(frozen=True)
class EdgeScores(Scores):
    """Scores of a set.

    Args:
        thresholds: (T,).
        counts: (T, 4) as `picture_counts` gives them, summed over the images.
        best: (4,) likewise at every image's own best threshold.
        count: images.
    """

    thresholds: np.ndarray
    counts: np.ndarray
    best: np.ndarray
    count: int = 0

    @property
    def metrics(self) -> dict[str, float]:
        """ODS, OIS, AP and R50."""
        return {"ods": self.ods, "ois": self.ois, "ap": self.ap, "r50": self.r50}

    @property
    def precision(self) -> np.ndarray:
        """At every threshold."""
        return precision_recall(self.counts)[0]

    @property
    def recall(self) -> np.ndarray:
        """At every threshold."""
        return precision_recall(self.counts)[1]

    @property
    def ods(self) -> float:
        """The best F of one threshold for the whole set (optimal dataset scale)."""
        return float(precision_recall(self.counts)[2].max())

    @property
    def threshold(self) -> float:
        """The threshold of the ODS."""
        return float(self.thresholds[int(precision_recall(self.counts)[2].argmax())])

    @property
    def ois(self) -> float:
        """F where every image has its own best threshold (optimal image scale)."""
        return float(precision_recall(self.best)[2])

    @property
    def ap(self) -> float:
        """Mean precision over recalls 0, 0.01 … 1, interpolated between the thresholds.

        As in the benchmark, it counts 0 where no threshold reaches so high or so low a recall.
        """
        recall, precision = self._curve()
        return float(np.interp(np.arange(101) / 100, recall, precision, left=0, right=0).mean())

    @property
    def r50(self) -> float:
        """The greatest recall at a precision of one half, interpolated between the thresholds; 0 without any."""
        recall, precision = self._curve()
        good = np.flatnonzero(precision >= 0.5)
        if not len(good):
            return 0.0
        last = slice(good[-1], good[-1] + 2)
        return float(np.interp(-0.5, -precision[last], recall[last]))

    def _curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Recall, ascending, and precision, of equal recalls the greatest."""
        recall, positions = np.unique(self.recall, return_inverse=True)
        precision = np.zeros(len(recall))
        np.maximum.at(precision, positions, self.precision)
        return recall, precision


class EdgeMeter:
    """Boundary counts of a validation set (see :class:`sparsemask.tasks.dense.Meter`).

    truths(index): the annotators' boundaries of a validation image. quick: nine thresholds instead of 99.
    """

    def __init__(self, truths: Callable[[int], Sequence[np.ndarray]], quick: bool = False):
        self.truths, self.thresholds = truths, _QUICK if quick else THRESHOLDS
        self.total = torch.zeros(len(self.thresholds) + 2, 4, dtype=torch.int64)  # counts, best, number of images

    def add(self, index: int, prediction: torch.Tensor, target: torch.Tensor) -> None:
        """Count one image."""
        counts = picture_counts(thin_edges(prediction.numpy()), self.truths(index), self.thresholds)
        # Of equally good thresholds the highest: where nothing is true, it predicts least.
        best = len(counts) - 1 - int(precision_recall(counts)[2][::-1].argmax())
        self.total += torch.from_numpy(np.vstack([counts, counts[best], [1, 0, 0, 0]]))

    def scores(self) -> EdgeScores:
        """Scores of the sums."""
        total = self.total.numpy()
        return EdgeScores(self.thresholds, total[:-2], total[-2], int(total[-1, 0]))
