"""Scores of salient object detection: F-beta over all thresholds and at an adaptive one, mean absolute error.

As in Achanta et al. 2009 ("Frequency-tuned Salient Region Detection") and the benchmarks since: β² = 0.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sparsemask.tasks.protocol import Scores

BETA2 = 0.3
LEVELS = 256
_PICTURES, _TRUE, _ERROR, _ADAPTIVE = range(4)  # the scalars among the sums; the curves follow


def f_beta(precision: np.ndarray, recall: np.ndarray) -> np.ndarray:
    """(1 + β²)·P·R / (β²·P + R), 0 where both are 0."""
    weight = BETA2 * np.asarray(precision, np.float64) + recall
    return np.divide((1 + BETA2) * precision * recall, weight, out=np.zeros_like(weight), where=weight > 0)


def curves(prediction: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Precision and recall (256,) of one image: `prediction` >= t/255 for t = 0 … 255.

    Args:
        prediction: in [0, 1], any shape, rounded to the 256 grey values its PNG would have.
        truth: bool, of the same shape, not all false.

    Returns:
        (precision, recall), float64 (256,) in [0, 1]; precision is 0 where nothing is predicted.
    """
    grey = np.rint(prediction * (LEVELS - 1)).astype(np.int64)
    predicted, true = (np.bincount(grey[pixels].ravel(), minlength=LEVELS) for pixels in (np.ones_like(truth), truth))
    predicted, true = (
        np.cumsum(histogram[::-1])[::-1] for histogram in (predicted, true)
    )  # pixels at or above every grey value
    return true / np.maximum(predicted, 1), true / true[0]


def adaptive(prediction: np.ndarray, truth: np.ndarray) -> float:
    """F-beta of one image at twice the mean prediction (at most 1); truth: bool, not all false."""
    chosen = prediction >= min(2 * prediction.mean(), 1.0)
    hit = np.count_nonzero(chosen & truth)
    return float(f_beta(hit / max(np.count_nonzero(chosen), 1), np.float64(hit / np.count_nonzero(truth))))


@dataclass(frozen=True)
class SaliencyScores(Scores):
    """Scores of a set; means over images. Those without anything salient count for the error alone.

    Attributes:
        precision, recall: (256,) at the thresholds t/255.
        adaptive: F-beta at each image's adaptive threshold.
        mae: mean absolute error.
        count, empty: images, and how many of them are without anything salient.
    """

    precision: np.ndarray
    recall: np.ndarray
    adaptive: float
    mae: float
    count: int
    empty: int

    @property
    def metrics(self) -> dict[str, float]:
        """The greatest F-beta, the adaptive one and the error."""
        return {"f_beta": self.max_f, "f_adaptive": self.adaptive, "mae": self.mae}

    @property
    def f(self) -> np.ndarray:
        """F-beta (256,) of the mean precision and the mean recall."""
        return f_beta(self.precision, self.recall)

    @property
    def max_f(self) -> float:
        """The greatest F-beta of one threshold."""
        return float(self.f.max())

    @property
    def threshold(self) -> float:
        """The threshold of the greatest F-beta, in [0, 1]."""
        return int(self.f.argmax()) / (LEVELS - 1)


class SaliencyMeter:
    """Sums over a validation set (see :class:`sparsemask.tasks.dense.Meter`)."""

    def __init__(self):
        self.total = torch.zeros(4 + 2 * LEVELS, dtype=torch.float64)

    def add(self, index: int, prediction: torch.Tensor, target: torch.Tensor) -> None:
        """Count one image: prediction in [0, 1], target 1 where salient, 255 where not labelled."""
        labelled = target <= 1
        truth, values = (target[labelled] == 1).numpy(), prediction[labelled].numpy().astype(np.float64)
        row = np.zeros(len(self.total))
        row[_PICTURES] = 1
        if truth.size:
            row[_ERROR] = np.abs(values - truth).mean()
        if truth.any():
            row[_TRUE] = 1
            row[_ADAPTIVE] = adaptive(values, truth)
            row[4:] = np.concatenate(curves(values, truth))
        self.total += torch.from_numpy(row)

    def scores(self) -> SaliencyScores:
        """Means of the sums; 0 where no image has anything salient."""
        total = self.total.numpy()
        images, true = int(total[_PICTURES]), int(total[_TRUE])
        precision, recall = (total[4:] / max(true, 1)).reshape(2, LEVELS)
        mae, adapted = float(total[_ERROR]) / max(images, 1), float(total[_ADAPTIVE]) / max(true, 1)
        return SaliencyScores(precision, recall, adapted, mae, images, images - true)
