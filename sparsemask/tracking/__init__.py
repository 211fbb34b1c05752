"""Trackers of experiments: where a run's metrics and images go beside its folder (``--track``)."""

from sparsemask.tracking.protocol import Histogram, TrackedRun, Tracker

__all__ = ["Histogram", "TrackedRun", "Tracker"]
