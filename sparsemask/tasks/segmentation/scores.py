"""Metrics of dense prediction from one confusion matrix over the whole set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sparsemask.tables import table
from sparsemask.tasks.protocol import Scores


def confusion(prediction: torch.Tensor, target: torch.Tensor, n_class: int) -> torch.Tensor:
    """Confusion matrix of class indices.

    Args:
        prediction: integers of any shape, 0 to n_class - 1.
        target: integers of the same shape; pixels outside 0 to n_class - 1 are ignored.
        n_class: number of classes C.

    Returns:
        int64 (C, C), rows truth, columns prediction.
    """
    valid = (target >= 0) & (target < n_class)
    index = target[valid].long() * n_class + prediction[valid].long()
    return torch.bincount(index, minlength=n_class * n_class).reshape(n_class, n_class)


@dataclass(frozen=True)
class SegmentationScores(Scores):
    """Scores of a confusion matrix.

    Args:
        matrix: int64 (C, C), rows truth, columns prediction.
        count: samples that were scored.
    """

    matrix: np.ndarray
    count: int = 0

    @property
    def metrics(self) -> dict[str, float]:
        """Mean IoU and pixel accuracy."""
        return {"miou": self.miou, "pixel_accuracy": self.pixel_accuracy}

    @property
    def confusion(self) -> np.ndarray:
        """The confusion matrix."""
        return self.matrix

    @property
    def iou(self) -> np.ndarray:
        """(C,): NaN where a class occurs neither in the truth nor in the prediction.

        A class absent from the truth but predicted somewhere scores 0, as published.
        """
        hit = np.diag(self.matrix)
        return ratio(hit, self.matrix.sum(0) + self.matrix.sum(1) - hit)

    @property
    def recall(self) -> np.ndarray:
        """(C,) share of each class's samples that are found, NaN for a class without any."""
        return ratio(np.diag(self.matrix), self.matrix.sum(1))

    @property
    def present(self) -> np.ndarray:
        """Whether each class occurs in the truth."""
        return self.matrix.sum(1) > 0

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur in truth or prediction; NaN when there is none."""
        occurring = self.iou[~np.isnan(self.iou)]
        return float(occurring.mean()) if occurring.size else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are right."""
        total = self.matrix.sum()
        return float(np.diag(self.matrix).sum() / total) if total else float("nan")

    def absent(self, names: list[str]) -> list[str]:
        """Names of the classes that do not occur in the truth."""
        return [name for name, present in zip(names, self.present, strict=True) if not present]


def by_class(classes: Sequence[str], values: np.ndarray) -> dict[str, float | None]:
    """Values (C,) by the classes' names for JSON; None for NaN."""
    return {name: None if math.isnan(v) else v for name, v in zip(classes, values.tolist(), strict=True)}


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotients, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=denominator > 0)


class ConfusionMeter:
    """The confusion matrix of a validation set, sample by sample (see :class:`sparsemask.tasks.dense.Meter`)."""

    def __init__(self, n_class: int, kind: type[SegmentationScores] = SegmentationScores):
        self.n_class, self.kind = n_class, kind
        self.total = torch.zeros(n_class * n_class + 1, dtype=torch.int64)  # and the samples

    def add(self, index: int, prediction: torch.Tensor, target: torch.Tensor) -> None:
        """Count one sample."""
        self.total[:-1] += confusion(prediction, target, self.n_class).flatten()
        self.total[-1] += 1

    def scores(self) -> SegmentationScores:
        """Scores of the matrix."""
        matrix = self.total[:-1].reshape(self.n_class, self.n_class)
        return self.kind(matrix.numpy(), int(self.total[-1]))


def class_table(scores: SegmentationScores, classes: list[str], what: str = "pixels") -> str:
    """IoU, recall and share of the labelled pixels, a row a class; a dash where a class does not occur at all."""
    truth = scores.matrix.sum(1)
    shares = 100 * truth / max(1, truth.sum())
    rows = [
        {
            "class": name,
            "IoU": None if math.isnan(iou) else iou,
            "recall": None if math.isnan(recall) else recall,
            "share": share,
        }
        for name, iou, recall, share in zip(
            classes, scores.iou.tolist(), scores.recall.tolist(), shares.tolist(), strict=True
        )
    ]
    return table(
        rows, {"class": "class", "IoU": ("IoU", ".3f"), "recall": ("recall", ".3f"), "share": (f"% {what}", ".1f")}
    )
