"""Weights & Biases: a run of the project $WANDB_PROJECT (default: sparsemask); WANDB_MODE=offline works too."""

from __future__ import annotations

import os

from sparsemask.tracking.protocol import LoggedTracker, TrackedRun


class WeightsAndBiases(LoggedTracker):
    """By wandb, in a run of its own beside those that the program has open.

    Steps after the checkpoint that a killed run goes on from were sent already; the service ignores their repetition.
    """

    package = "wandb"

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

    def finish(self, complete: bool) -> None:
        """See :meth:`Tracker.finish`."""
        self._run.finish(exit_code=0 if complete else 1)
