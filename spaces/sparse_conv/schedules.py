"""Schedules of the masks' temperature and of the sparsity loss's weight (SMSR, arXiv 2006.09603, section 4.1).

Published schedules are in epochs of a run of 1000 (SMSR) or 100 (SMPointSeg) epochs. Here an epoch is the same fraction
of a run of any length, so that schedules keep their shape; for the published run both are equal.
"""

from __future__ import annotations


def published_epoch(step: int, steps: int, epochs: int = 1000) -> int:
    """Map a step to an epoch of the published run.

    Args:
        step: 0 … steps - 1.
        steps: of the run.
        epochs: of the published run.

    Returns:
        1 … epochs.
    """
    return 1 + epochs * step // max(steps, 1)


def temperature(epoch: int, epochs: float = 500.0, end: float = 0.4) -> float:
    """Temperature of soft masks, τ = max(1 - (epoch - 1) / epochs, end).

    Args:
        epoch: of the published run, from 1.
        epochs: in which τ falls by 1, above 0.
        end: smallest τ.
    """
    return max(1 - (epoch - 1) / epochs, end)


def sparse_weight(epoch: int, epochs: int = 50, start: int = 0) -> float:
    """Factor on λ, min((epoch - 1 - start) / epochs, 1), at least 0.

    Args:
        epoch: of the published run, from 1.
        epochs: in which the factor rises to 1; 0: at once.
        start: epochs before that; published: 0.

    Returns:
        In [0, 1].
    """
    passed = epoch - 1 - start
    return max(0.0, min(passed / epochs, 1.0)) if epochs else float(passed >= 0)
