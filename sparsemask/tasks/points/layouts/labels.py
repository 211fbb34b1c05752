"""What class lists have in common: weights of the loss from how often classes occur."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sparsemask.errors import UseError

if TYPE_CHECKING:
    from sparsemask.tasks.points.clouds.cloud import Cloud

_FLOOR = 0.02  # keeps the weight of a class that hardly occurs below 50


def class_weights(counts: Sequence[int]) -> np.ndarray:
    """1 / (frequency + 0.02) of every class, float32, from numbers of points.

    Source: the cross-entropy weights of RandLA-Net (Hu et al., CVPR 2020), which SMPointSeg trains with.
    """
    counts = np.asarray(counts, np.float64)
    return (1 / (counts / max(counts.sum(), 1) + _FLOOR)).astype(np.float32)


def class_counts(clouds: Iterable[Cloud], classes: int) -> np.ndarray:
    """Points of every class in labelled clouds, int64 (classes,); ignored ones are not counted."""
    total = np.zeros(classes, np.int64)
    for cloud in clouds:
        total += np.bincount(cloud.labels[cloud.labels >= 0], minlength=classes)
    return total


def checked_classes(labels: np.ndarray, classes: int, where: object) -> np.ndarray:
    """Labels as int32; UseError unless all lie in 0 .. classes - 1 (naming some that do not)."""
    wrong = labels[(labels < 0) | (labels >= classes)]
    if len(wrong):
        some = ", ".join(map(str, np.unique(wrong)[:5]))
        raise UseError(f"{where}: {len(wrong)} labels are none of 0 .. {classes - 1} ({some})")
    return labels.astype(np.int32)
