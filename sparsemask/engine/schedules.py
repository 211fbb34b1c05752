"""Learning-rate factors as functions of the step alone, so that a resumed run needs no scheduler history."""

from __future__ import annotations

from collections.abc import Sequence


def factor(
    name: str,
    step: int,
    max_iter: int,
    gamma: float = 0.9,
    milestones: Sequence[float] | None = None,
    warmup: int = 0,
    epoch: int = 1,
) -> float:
    """Factor on every base learning rate at `step` (0 … max_iter−1).

    poly: (1 − step/max_iter)^gamma, per iteration (SparseMask, section 4.1). step: gamma at each passed milestone
    (fractions of the run; default 1/2 and 3/4). exponential: gamma to the number of epochs of `epoch` steps that have
    passed. constant: 1. The first `warmup` steps rise linearly.
    """
    if name == "poly":
        value = (1 - step / max_iter) ** gamma
    elif name == "step":
        value = gamma ** sum(step >= m * max_iter for m in (milestones or (0.5, 0.75)))
    elif name == "exponential":
        value = gamma ** (step // epoch)
    else:
        value = 1.0
    return value * min(1.0, (step + 1) / (warmup + 1)) if warmup else value
