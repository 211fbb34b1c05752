"""Scores of classification: top-1, top-5, cross-entropy, and recall and precision of each class."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from sparsemask.tables import table
from sparsemask.tasks.segmentation.scores import SegmentationScores, confusion, ratio

TOP = 5


@dataclass(frozen=True)
class ClassificationScores(SegmentationScores):
    """Scores of images.

    matrix: (C, C) images, rows truth, columns the first guess. count: images. hits5: those whose class is among
    the first five guesses. entropy: sum of the cross-entropies, in nats.
    """

    hits5: int = 0
    entropy: float = 0.0

    @property
    def top1(self) -> float:
        """Share of the images that are right."""
        return self.pixel_accuracy

    @property
    def metrics(self) -> dict[str, float]:
        """top1, and top5 where there are more than five classes, as shares; loss: the mean cross-entropy."""
        count = max(1, self.count)
        values = {"top1": self.top1, "top5": self.hits5 / count, "loss": self.entropy / count}
        return {k: v for k, v in values.items() if k != "top5" or len(self.matrix) > TOP}

    @property
    def precision(self) -> np.ndarray:
        """(C,) share of each class's guesses that are right, NaN for a class never guessed."""
        return ratio(np.diag(self.matrix), self.matrix.sum(0))

    def summary(self) -> str:
        """The metrics in a line."""
        values = self.metrics
        top5 = f"  top-5 {values['top5']:.2%}" if "top5" in values else ""
        return f"top-1 {values['top1']:.2%}{top5}  error {1 - values['top1']:.2%}  cross-entropy {values['loss']:.4f}"

    def text(self, classes: list[str]) -> str:
        """Table by class: accuracy, precision, images, and the class it is most often confused with."""
        wrong = self.matrix - np.diag(np.diag(self.matrix))
        rows = [
            {
                "class": name,
                "accuracy": float(self.recall[k]),
                "precision": float(self.precision[k]),
                "pictures": int(self.matrix[k].sum()),
                "for": f"{classes[int(wrong[k].argmax())]} ({int(wrong[k].max())})" if wrong[k].any() else None,
            }
            for k, name in enumerate(classes)
        ]
        columns = {
            "class": "class", "accuracy": ("accuracy", ".3f"), "precision": ("precision", ".3f"),
            "pictures": "pictures", "for": "mostly taken for",
        }  # fmt: skip
        return table(rows, columns)


class ClassificationMeter:
    """Counts over images; `total` (C * C + 2,) can be summed over processes: the matrix, hits in five, entropy."""

    def __init__(self, n_class: int):
        self.n_class = n_class
        self.total = torch.zeros(n_class * n_class + 2, dtype=torch.float64)

    def add(self, logits: torch.Tensor, target: torch.Tensor) -> None:
        """Count a batch: logits (N, C), classes (N,)."""
        logits = logits.double()
        best = logits.topk(min(TOP, self.n_class), dim=1).indices
        self.total[:-2] += confusion(best[:, 0], target, self.n_class).flatten()
        self.total[-2] += (best == target[:, None]).any(1).sum()
        self.total[-1] += F.cross_entropy(logits, target, reduction="sum")

    def scores(self) -> ClassificationScores:
        """Scores of the counts."""
        matrix = self.total[:-2].reshape(self.n_class, self.n_class).round().long().numpy()
        return ClassificationScores(matrix, int(matrix.sum()), int(self.total[-2]), float(self.total[-1]))
