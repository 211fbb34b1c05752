"""Trackio: a run of the project $TRACKIO_PROJECT (default: sparsemask), kept on this machine unless told otherwise."""

from __future__ import annotations

import os

from sparsemask.tracking.protocol import LoggedTracker, TrackedRun


class Trackio(LoggedTracker):
    """By trackio, which knows a run by its name."""

    package = "trackio"

    def start(self, run: TrackedRun) -> str:
        """See :meth:`Tracker.start`."""
        import trackio

        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT") or "sparsemask",
            name=run.known_as or run.name,
            config={name: value for name, value in run.flags.items() if value is not None},
            resume="allow" if run.known_as else "never",
            embed=False,
        )
        return str(self._run.name)

    def finish(self, complete: bool) -> None:
        """See :meth:`Tracker.finish`."""
        self._run.finish()
