"""TensorBoard: event files in the run's folder (``tensorboard --logdir runs``)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sparsemask.tracking.protocol import Histogram, TrackedRun, Tracker


class TensorBoard(Tracker):
    """Event files by tensorboardX. A resumed run's forget what lies after its checkpoint."""

    def start(self, run: TrackedRun) -> None:
        """See :meth:`Tracker.start`; nothing is needed to go on."""
        from tensorboardX import SummaryWriter

        purged = run.step + 1 if run.step else None
        # Files are named by the second in which they are made, and one of the same name would be overwritten.
        suffix = f".{run.step}" if run.step else ""
        self._writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purged, filename_suffix=suffix)
        if purged is None:
            flags = "".join(f"    {name}: {value}\n" for name, value in sorted(run.flags.items()))
            self._writer.add_text("configuration", flags, 0)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See :meth:`Tracker.scalars`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """See :meth:`Tracker.images`."""
        for name, image in images.items():
            self._writer.add_image(name, image, step, dataformats="HWC")

    def histograms(self, step: int, histograms: Mapping[str, Histogram]) -> None:
        """See :meth:`Tracker.histograms`."""
        for name, spread in histograms.items():
            self._writer.add_histogram_raw(
                name, float(spread.edges[0]), float(spread.edges[-1]), int(spread.counts.sum()), spread.total,
                spread.squares, spread.edges[1:].tolist(), spread.counts.tolist(), step,
            )  # fmt: skip

    def finish(self, complete: bool) -> None:
        """See :meth:`Tracker.finish`."""
        self._writer.close()
