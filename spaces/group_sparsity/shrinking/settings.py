"""The named arguments of shrinking, and their defaults."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypedDict

from torch import Tensor

from sparsemask.spaces.group_sparsity.shrinking.allocation import Policy
from sparsemask.spaces.group_sparsity.shrinking.importance import Importance

Batches = Iterable[Any]
Loss = Callable[[Any, Any], Tensor]


class Options(TypedDict, total=False):
    """The named arguments that :func:`shrink` and :meth:`ShrinkPlan.shrink` share."""

    importance: str | Importance
    policy: Policy
    minimum: float
    multiple: int | None
    fold: str
    data: Batches | None
    loss: Loss | None
    seed: int
    timed: bool


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The same with their defaults; :func:`shrink` says what they mean."""

    importance: str | Importance = "l2"
    policy: Policy = "time"
    minimum: float = 0.1
    multiple: int | None = None
    fold: str = "exact"
    data: Batches | None = None
    loss: Loss | None = None
    seed: int = 0
    timed: bool = True

    def __str__(self) -> str:
        name = self.importance if isinstance(self.importance, str) else "an importance of one's own"
        policy = self.policy if isinstance(self.policy, str) else "shares by layer"
        multiple = f", multiples of {self.multiple}" if self.multiple is not None and self.multiple > 1 else ""
        return f"{name}, {policy}{multiple}, fold {self.fold}"
