"""What a training loop tells whoever listens, after every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias


@dataclass(frozen=True)
class TrainingStep:
    """A step that is done.

    Attributes:
        step: its number, from 1.
        steps: of the run in all.
        metrics: of the step by name: loss, lr, and what the method adds.
        validation: metrics of the validation after this step; None where there was none.
        seconds: spent on the run so far, its resumed parts together.
        folder: of the run.
    """

    step: int
    steps: int
    metrics: Mapping[str, Any]
    validation: Mapping[str, Any] | None
    seconds: float
    folder: Path


Callback: TypeAlias = Callable[[TrainingStep], bool | None]
"""Called after every step, in every process; true ends the training, in a checkpoint and with a result as usual."""
