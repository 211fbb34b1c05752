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
    """Factor on every base learning rate at a step.

    Args:
        name: "poly": (1 - step/max_iter)^gamma, per iteration (SparseMask, section 4.1). "step": gamma at each passed
            milestone. "exponential": gamma to the number of passed epochs. "constant": 1.
        step: 0 to max_iter - 1.
        max_iter: steps of the run.
        gamma: exponent of "poly", base of "step" and "exponential".
        milestones: fractions of the run in [0, 1], for "step"; None: 1/2 and 3/4.
        warmup: number of first steps in which the factor rises linearly.
        epoch: steps of an epoch, for "exponential".

    Returns:
        The factor, 0 or more.
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
