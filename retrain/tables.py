"""Tables that evaluation prints."""

from __future__ import annotations

import math

from sparsemask.tables import table
from sparsemask.tasks.metrics import SegmentationScores


def class_table(scores: SegmentationScores, classes: list[str]) -> str:
    """IoU, recall and share of the labelled pixels, a row a class; a dash where a class does not occur at all."""
    truth = scores.matrix.sum(1)
    rows = []
    for index, name in enumerate(classes):
        iou = scores.iou[index]
        hit = scores.matrix[index, index]
        rows.append(
            {
                "class": name,
                "IoU": None if math.isnan(iou) else float(iou),
                "recall": float(hit / truth[index]) if truth[index] else None,
                "pixels": float(100 * truth[index] / max(1, truth.sum())),
            }
        )
    return table(
        rows, {"class": "class", "IoU": ("IoU", ".3f"), "recall": ("recall", ".3f"), "pixels": ("% pixels", ".1f")}
    )
