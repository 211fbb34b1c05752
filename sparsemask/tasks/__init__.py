"""Tasks: data, loss, metrics and pictures of what a network is for, by name.

A task has ``n_output`` (channels of the network's output), ``check()`` (raises UseError for absent data),
``train_data`` (``len`` and ``sample(index, rng)``), ``count(target)``, ``loss(output, target)`` (a sum, to be divided
by the count over all processes), ``evaluate(model, arithmetic, options, limit)`` -> figures, ``primary`` (the figure
that decides), ``samples(model, arithmetic, options, n)`` and ``draw(samples, path)``. For evaluation it has
``scores(...)``, ``figures(scores)``, ``record(scores)``, ``report(scores, pictures)``, ``draw_scores(scores, folder)``
and ``save(path, prediction)``; networks are called by ``arithmetic.run(model, inputs)``, which refuses outputs that are
not finite; its class has ``sample_folder()`` and ``reads_voc``.
:class:`sparsemask.tasks.dense.DenseTask` gives most of it. A task whose data are not pictures with labels has flags of
its own instead of those of the others: its class has ``add_options(group)`` and ``data_flags``, the names of the flags
that name data.

A user's own task is a class ``package.module:Class``, mostly one derived from a task here, whose data flags it has; it
is imported only where the user names it (:mod:`sparsemask.own`).
"""

from __future__ import annotations

import argparse
import importlib

from sparsemask.errors import UseError, choose
from sparsemask.own import imported, is_own

_TASKS = {
    "segmentation": "sparsemask.tasks.segmentation:SegmentationTask",
    "saliency": "sparsemask.tasks.saliency:SaliencyTask",
    "edges": "sparsemask.tasks.edges:EdgesTask",
    "ade20k": "sparsemask.tasks.ade20k:Ade20kTask",
    "super_resolution": "sparsemask.tasks.super_resolution:SuperResolutionTask",
    "s3dis": "sparsemask.tasks.points_s3dis:S3DISTask",
    "semantickitti": "sparsemask.tasks.points_kitti:SemanticKITTITask",
    "sample": "sparsemask.tasks.points_s3dis:SampleTask",
    "stereo": "sparsemask.tasks.stereo:StereoTask",
    "classification": "sparsemask.tasks.classification:ClassificationTask",
}
DEFAULT = "segmentation"
_OWN_FLAGS = {"super_resolution": "enlarge", "stereo": "pairs", "classification": "classes"}
_OWN_FLAGS |= dict.fromkeys(("s3dis", "semantickitti", "sample"), "points")


def available() -> list[str]:
    """Names of the tasks."""
    return sorted(_TASKS)


def own_flags(name: str) -> bool:
    """Whether the task has data flags of its own."""
    return name in _OWN_FLAGS


def siblings(name: str) -> list[str]:
    """Names of the tasks that a command line with this task's data flags may name."""
    return [task for task in available() if _OWN_FLAGS.get(task) == _OWN_FLAGS.get(name)]


def fits(name: str, default: str) -> bool:
    """Whether a command line whose data flags are those of task `default` may name the task `name`."""
    if is_own(name) and own_flags(default):
        return any(issubclass(find(name), find(task)) for task in siblings(default))
    return is_own(name) or name in siblings(default)


def find(name: str) -> type:
    """The class of the task `name`; of ``package.module:Class``, a user's own."""
    if is_own(name):
        found = imported(name, "task")
        if not isinstance(found, type) or not hasattr(found, "evaluate"):
            raise UseError(f"task '{name}': is no class of a task: derive it from one in sparsemask.tasks")
        return found
    choose(name, _TASKS, "task")
    module, attribute = _TASKS[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def get(name: str, options: argparse.Namespace):
    """The task `name` on the data that `options` names; `options.n_class`, if there, is set to its channels."""
    task = find(name)(options)
    if hasattr(options, "n_class"):
        options.n_class = task.n_output
    return task
