"""What a tracker of experiments is told of a run."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np


@dataclass(frozen=True)
class TrackedRun:
    """A run that begins or goes on.

    Attributes:
        name: of the run.
        folder: of the run, where trackers keep files of their own.
        verb: what the run is of: search, retrain, specialize.
        flags: its configuration, plain values by name.
        step: steps that are done; above 0 where the run is resumed.
        known_as: what :meth:`Tracker.start` returned when the run began; None: it is not known to the tracker.
    """

    name: str
    folder: Path
    verb: str = ""
    flags: Mapping[str, Any] = field(default_factory=dict)
    step: int = 0
    known_as: str | None = None


class Histogram(NamedTuple):
    """How numbers are spread.

    Attributes:
        counts: of each bin, (n,) whole numbers.
        edges: of the bins, (n + 1,), rising.
        total: the sum of the numbers.
        squares: the sum of their squares.
    """

    counts: np.ndarray
    edges: np.ndarray
    total: float
    squares: float


class Tracker(ABC):
    """Where a run's metrics and images go. One object serves one run, in its first process.

    Whatever a method raises ends the tracking and never the training, but for `start` of a run that begins.
    """

    @abstractmethod
    def start(self, run: TrackedRun) -> str | None:
        """Begin to track a run, or go on with the one that is `run.known_as`.

        Returns:
            What the run is known as, for a resume; None where the tracker cannot go on with a run.

        Raises:
            UseError: the tracker cannot be used, such as without a login.
        """

    @abstractmethod
    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers of a step, all of them finite."""

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:  # noqa: B027 - a tracker may have none
        """Images uint8 (H, W, 3), by name."""

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:  # noqa: B027 - likewise
        """How weights are spread, by name."""

    @abstractmethod
    def finish(self, complete: bool) -> None:
        """End the tracking; `complete` is false where an error or a signal ended the run."""


class LoggedTracker(Tracker):
    """A tracker whose package has runs with `log`, `Image` and `Histogram`; `start` sets `_run`."""

    package: ClassVar[str]
    _run: Any

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See :meth:`Tracker.scalars`."""
        self._run.log(dict(values), step=step)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """See :meth:`Tracker.images`."""
        kind = importlib.import_module(self.package).Image
        self._run.log({f"pictures/{name}": kind(image) for name, image in images.items()}, step=step)

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """See :meth:`Tracker.histograms`."""
        kind = importlib.import_module(self.package).Histogram
        spreads = {name: kind(np_histogram=(s.counts, s.edges)) for name, s in histograms.items()}
        self._run.log(spreads, step=step)
