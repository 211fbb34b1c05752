"""Tasks: data, loss, metrics and pictures of what a network is for, by name.

A task has ``n_output`` (channels of the network's output), ``check()`` (raises UseError for absent data),
``train_data`` (``len`` and ``sample(index, rng)``), ``count(target)``, ``loss(output, target)`` (a sum, to be divided
by the count over all processes), ``evaluate(model, arithmetic, options, limit)`` -> figures, ``primary`` (the figure
that decides), ``samples(model, arithmetic, options, n)`` and ``draw(samples, path)``. For evaluation it has
``scores(...)``, ``figures(scores)``, ``record(scores)``, ``report(scores, pictures)``, ``draw_scores(scores, folder)``
and ``save(path, prediction)``; its class has ``sample_folder()`` and ``reads_voc``.
:class:`sparsemask.tasks.dense.DenseTask` gives most of it.
"""

from __future__ import annotations

import argparse
import importlib

from sparsemask.errors import choose

_TASKS = {
    "segmentation": "sparsemask.tasks.segmentation:SegmentationTask",
    "saliency": "sparsemask.tasks.saliency:SaliencyTask",
    "edges": "sparsemask.tasks.edges:EdgesTask",
    "ade20k": "sparsemask.tasks.ade20k:Ade20kTask",
}


def available() -> list[str]:
    """Names of the tasks."""
    return sorted(_TASKS)


def find(name: str) -> type:
    """The class of the task `name`."""
    choose(name, _TASKS, "task")
    module, attribute = _TASKS[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def get(name: str, options: argparse.Namespace):
    """The task `name` on the data that `options` names; it settles `options.n_class`, the network's output channels."""
    task = find(name)(options)
    options.n_class = task.n_output
    return task
