"""The Berkeley benchmark's assignment of predicted to true boundary pixels, spelled out, for tests."""

from __future__ import annotations

import numpy as np
from scipy.optimize import linear_sum_assignment


def assignment(prediction: np.ndarray, truth: np.ndarray, distance: float) -> int:
    """Matched pixels of the benchmark's least-cost assignment: a pixel left over costs a hundred tolerances."""
    p, t = np.argwhere(prediction), np.argwhere(truth)
    away = np.hypot(*(p[:, None] - t[None]).transpose(2, 0, 1))
    cost = np.full((len(p), len(t) + len(p)), 100.0 * distance)
    cost[:, : len(t)] = np.where(away <= distance, away, 1e9)
    rows, columns = linear_sum_assignment(cost)
    return int((columns[rows.argsort()] < len(t)).sum())
