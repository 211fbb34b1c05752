"""Shared by all families' evaluation: prediction files and the record in the run's folder."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

from sparsemask import report as page
from sparsemask import training_setup
from sparsemask.errors import describe, say
from sparsemask.families import Restored
from sparsemask.tasks import Scores, Task


def prediction_writer(task: Task, out: str | None) -> Callable | None:
    """Return the function that writes each prediction into the folder `out`, which is created; None without one."""
    if not out:
        return None
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    return functools.partial(task.write, folder)


def record_evaluation(restored: Restored, task: Task, scores: Scores, entries: dict) -> None:
    """Draw an evaluation's scores and record them in the run's folder, if the network belongs to a run.

    Args:
        restored: the network.
        task: that it was evaluated on.
        scores: of the evaluation.
        entries: of run.json, by name.
    """
    run = restored.run
    if run is None:
        return
    try:
        task.draw_scores(scores, run.pictures)
        if scores.confusion is not None:
            page.record_confusion(run, task.classes, scores.confusion)
        run.note(**entries)
        say(f"report: {page.write_report(run)}")
    except OSError as error:  # the metrics are printed; a folder that may not be written is not worth failing for
        training_setup.warn(f"not written into {run.folder}: {describe(error) or error}")
