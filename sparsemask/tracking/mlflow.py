"""MLflow: a run of the experiment $MLFLOW_EXPERIMENT_NAME (default: sparsemask) at $MLFLOW_TRACKING_URI."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping

import numpy as np
from PIL import Image

from sparsemask.tracking.protocol import TrackedRun, Tracker

_MOST = 500  # characters of a parameter that every server takes
_AT_ONCE = 100  # parameters of a call, likewise
_NAME = re.compile(r"[^\w./ -]")  # what names of metrics may not hold


class MLflow(Tracker):
    """By MLflow's client, so that a run which the program itself has open is left alone. It has no histograms."""

    def start(self, run: TrackedRun) -> str:
        """See :meth:`Tracker.start`."""
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient()
        if run.known_as is not None:
            self._id = run.known_as
            self._client.update_run(self._id, status="RUNNING")
            return self._id
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or "sparsemask"
        experiment = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        tags = {"sparsemask.verb": run.verb, "sparsemask.folder": str(run.folder.resolve())}
        self._id = str(self._client.create_run(number, run_name=run.name, tags=tags).info.run_id)
        parameters = [Param(flag, str(value)[:_MOST]) for flag, value in run.flags.items() if value is not None]
        for first in range(0, len(parameters), _AT_ONCE):
            self._client.log_batch(self._id, params=parameters[first : first + _AT_ONCE])
        return self._id

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """See :meth:`Tracker.scalars`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [Metric(_NAME.sub("_", name), value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """See :meth:`Tracker.images`; they are files of the run."""
        for name, image in images.items():
            self._client.log_image(self._id, Image.fromarray(image), artifact_file=f"pictures/{step:06d}/{name}.png")

    def finish(self, complete: bool) -> None:
        """See :meth:`Tracker.finish`."""
        self._client.set_terminated(self._id, "FINISHED" if complete else "KILLED")
