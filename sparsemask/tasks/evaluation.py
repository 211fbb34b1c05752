"""Helpers of the tasks' evaluations: samples of each process, sums over processes, values for JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sparsemask.devices import Arithmetic
from sparsemask.engine import distributed


def shared_indices(length: int, limit: int = 0) -> tuple[int, list[int]]:
    """(samples scored by all processes, numbers of this process's) of `length`, or of the first `limit`."""
    count = min(limit or length, length)
    return count, list(range(count))[distributed.rank() :: distributed.world()]


def spread_indices(length: int, n: int) -> list[int]:
    """Up to `n` numbers below `length`, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, length - 1, min(n, length)).astype(int)).tolist()


def summed(total: torch.Tensor, arithmetic: Arithmetic) -> torch.Tensor:
    """Sum of a meter's counts over all processes, on the CPU."""
    return distributed.total(total.to(arithmetic.device)).cpu()


def set_evaluation(model: Callable) -> None:
    """Put a module into evaluation mode; other functions are left as they are."""
    if isinstance(model, torch.nn.Module):
        model.eval()


def json_value(value: Any) -> Any:
    """The value; None for NaN and infinity, which JSON cannot hold."""
    return None if isinstance(value, float) and not np.isfinite(value) else value
