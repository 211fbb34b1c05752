"""Metrics of dense prediction from one confusion matrix over the whole set."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch


def confusion(prediction: torch.Tensor, target: torch.Tensor, n_class: int) -> torch.Tensor:
    """(n_class, n_class) counts, rows truth, columns prediction; targets outside 0 … n_class−1 are ignored."""
    valid = (target >= 0) & (target < n_class)
    index = target[valid].long() * n_class + prediction[valid].long()
    return torch.bincount(index, minlength=n_class * n_class).reshape(n_class, n_class)


@dataclass(frozen=True)
class SegmentationScores:
    """Scores of a confusion matrix.

    iou: per class, NaN where the class occurs neither in the truth nor in the prediction. A class absent from the
    truth but predicted somewhere scores 0, as published. miou: mean over the classes that are not NaN.
    """

    matrix: np.ndarray

    @property
    def iou(self) -> np.ndarray:
        hit = np.diag(self.matrix).astype(np.float64)
        union = self.matrix.sum(0) + self.matrix.sum(1) - np.diag(self.matrix)
        return np.divide(hit, union, out=np.full_like(hit, np.nan), where=union > 0)

    @property
    def present(self) -> np.ndarray:
        """Whether each class occurs in the truth."""
        return self.matrix.sum(1) > 0

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that occur in truth or prediction; NaN when there is none."""
        known = self.iou[~np.isnan(self.iou)]
        return float(known.mean()) if known.size else float("nan")

    @property
    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are right."""
        total = self.matrix.sum()
        return float(np.diag(self.matrix).sum() / total) if total else float("nan")

    def absent(self, names: list[str]) -> list[str]:
        """Names of the classes that do not occur in the truth."""
        return [name for name, here in zip(names, self.present, strict=True) if not here]
