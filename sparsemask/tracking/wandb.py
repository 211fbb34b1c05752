"""Weights & Biases: a run of the project $WANDB_PROJECT (default: sparsemask); WANDB_MODE=offline works too."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from sparsemask.tracking.protocol import Histogram, TrackedRun, Tracker


class WeightsAndBiases(Tracker):
    """By wandb, in a run of its own beside those that the program has open.

    Steps after the checkpoint that a killed run goes on from were sent already; the service ignores their repetition.
    """

    def start(self, run: TrackedRun) -> str:
        """See :meth:`Tracker.start`."""
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "sparsemask",
            name=run.name,
            job_type=run.verb,
            config=dict(run.flags),
            dir=str(run.folder),
            id=run.known_as,
            resume="allow" if run.known_as else None,
            reinit="create_new",
        )
        return str(self._run.id)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See :meth:`Tracker.scalars`."""
        self._run.log(dict(values), step=step)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """See :meth:`Tracker.images`."""
        import wandb

        self._run.log({f"pictures/{name}": wandb.Image(image) for name, image in images.items()}, step=step)

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """See :meth:`Tracker.histograms`."""
        import wandb

        spreads = {name: wandb.Histogram(np_histogram=(s.counts, s.edges)) for name, s in histograms.items()}
        self._run.log(spreads, step=step)

    def finish(self, complete: bool) -> None:
        """See :meth:`Tracker.finish`."""
        self._run.finish(exit_code=0 if complete else 1)
