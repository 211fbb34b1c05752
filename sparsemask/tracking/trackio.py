"""Trackio: a run of the project $TRACKIO_PROJECT (default: sparsemask), kept on this machine unless told otherwise."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from sparsemask.tracking.protocol import Histogram, TrackedRun, Tracker


class Trackio(Tracker):
    """By trackio, which knows a run by its name."""

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

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See :meth:`Tracker.scalars`."""
        self._run.log(dict(values), step=step)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """See :meth:`Tracker.images`."""
        import trackio

        self._run.log({f"pictures/{name}": trackio.Image(image) for name, image in images.items()}, step=step)

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """See :meth:`Tracker.histograms`."""
        import trackio

        spreads = {name: trackio.Histogram(np_histogram=(s.counts, s.edges)) for name, s in histograms.items()}
        self._run.log(spreads, step=step)

    def finish(self, complete: bool) -> None:
        """See :meth:`Tracker.finish`."""
        self._run.finish()
