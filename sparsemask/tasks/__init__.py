"""Tasks by name: data, loss, metrics and drawings.

The contract is :class:`sparsemask.tasks.protocol.Task`. :class:`sparsemask.tasks.dense.DenseTask` gives most of it for
tasks with a label for every pixel. A task whose data are not images with labels has flags of its own
(``Task.section``) in place of the others' data flags.

A user's own task is a class ``package.module:Class``, mostly one derived from a task here, whose data flags it has; it
is imported only where the user names it (:mod:`sparsemask.plugins`).
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

from sparsemask.config import RunConfig
from sparsemask.errors import UseError, choose
from sparsemask.plugins import imported, is_own
from sparsemask.tasks.protocol import (
    DataSection,
    Evaluation,
    EvaluationContext,
    LabelledData,
    Meter,
    Scores,
    ScoresBySample,
    Task,
)  # fmt: skip

__all__ = [
    "DEFAULT", "DataSection", "Evaluation", "EvaluationContext", "LabelledData", "Meter", "Scores", "ScoresBySample",
    "Task", "available", "find", "fits", "get", "own_flags", "siblings",
]  # fmt: skip


class _Entry(NamedTuple):
    """Where a task's class is, and which tasks share its data flags: None for a label for every pixel."""

    path: str
    flags: str | None = None


_TASKS = {
    "segmentation": _Entry("sparsemask.tasks.segmentation.task:SegmentationTask"),
    "saliency": _Entry("sparsemask.tasks.saliency.task:SaliencyTask"),
    "edges": _Entry("sparsemask.tasks.edges.task:EdgesTask"),
    "ade20k": _Entry("sparsemask.tasks.ade20k.task:Ade20kTask"),
    "super_resolution": _Entry("sparsemask.tasks.super_resolution.task:SuperResolutionTask", "super_resolution"),
    "s3dis": _Entry("sparsemask.tasks.points.s3dis:S3DISTask", "points"),
    "semantickitti": _Entry("sparsemask.tasks.points.semantickitti:SemanticKITTITask", "points"),
    "sample": _Entry("sparsemask.tasks.points.s3dis:SampleTask", "points"),
    "stereo": _Entry("sparsemask.tasks.stereo.task:StereoTask", "stereo"),
    "classification": _Entry("sparsemask.tasks.classification.task:ClassificationTask", "classification"),
}
DEFAULT = "segmentation"
_FORMER = {"figures": "metrics(scores)", "scores": "evaluate(model, context, ...)"}  # methods that users may still have


def available() -> list[str]:
    """Names of the tasks."""
    return sorted(_TASKS)


def own_flags(name: str) -> bool:
    """Whether the task has data flags of its own."""
    return _flags(name) is not None


def siblings(name: str) -> list[str]:
    """Names of the tasks that a command line with this task's data flags may name."""
    return [task for task in available() if _flags(task) == _flags(name)]


def _flags(name: str) -> str | None:
    return _TASKS[name].flags if name in _TASKS else None


def fits(name: str, default: str) -> bool:
    """Whether a command line whose data flags are those of task `default` may name the task `name`."""
    if is_own(name) and own_flags(default):
        return any(issubclass(find(name), find(task)) for task in siblings(default))
    return is_own(name) or name in siblings(default)


def find(name: str) -> type[Task]:
    """The class of the task `name`; of ``package.module:Class``, a user's own.

    Raises:
        UseError: an unknown name, a user's code that is no task, or one of methods that are called otherwise now.
    """
    if is_own(name):
        task = imported(name, "task")
        if not isinstance(task, type) or not issubclass(task, Task):
            raise UseError(f"task '{name}': is no class of a task: derive it from one in sparsemask.tasks")
        for former, method in _FORMER.items():
            if any(former in vars(base) for base in task.__mro__):
                raise UseError(f"task '{name}': its method {former} is called {method} now")
        return task
    choose(name, _TASKS, "task")
    module, attribute = _TASKS[name].path.split(":")
    return getattr(importlib.import_module(module), attribute)


def get(name: str, config: RunConfig) -> Task:
    """The task `name` on the data that a configuration names; its own `config` has what the task settled."""
    return find(name)(config)
