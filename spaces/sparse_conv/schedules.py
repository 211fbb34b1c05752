"""How temperature and weight of the loss on fine-grained masks go over a run (SMSR, arXiv 2006.09603, section 4.1).

Published schedules are in epochs, of a run of 1000 (SMSR) or 100 (SMPointSeg). Here an epoch is that share of the run,
whatever its length, so that they keep their shape; for the published run it is the same arithmetic.
"""

from __future__ import annotations


def published_epoch(step: int, steps: int, epochs: int = 1000) -> int:
    """The epoch, from 1 to `epochs` of the published run, that step 0 … steps-1 of a run falls into."""
    return 1 + epochs * step // max(steps, 1)


def temperature(epoch: int, epochs: float = 500.0, end: float = 0.4) -> float:
    """τ = max(1 - (epoch - 1) / epochs, end)."""
    return max(1 - (epoch - 1) / epochs, end)


def sparse_weight(epoch: int, epochs: int = 50, start: int = 0) -> float:
    """The share of λ that holds: min((epoch - 1 - start) / epochs, 1), and 0 before; published is start 0."""
    passed = epoch - 1 - start
    return max(0.0, min(passed / epochs, 1.0)) if epochs else float(passed >= 0)
