"""Tasks: data, loss, metrics and pictures of what a network is for, by name.

A task has ``check()`` (raises UseError for absent data), ``train_data`` (``len`` and ``sample(index, rng)``),
``count(target)``, ``loss(output, target)`` (a sum, to be divided by the count over all processes),
``evaluate(model, arithmetic, options, limit)`` -> figures, ``primary`` (the figure that decides),
``samples(model, arithmetic, options, n)`` and ``draw(samples, path)``.
"""

from __future__ import annotations

import argparse
import importlib

from sparsemask.errors import choose

_TASKS = {"segmentation": "sparsemask.tasks.segmentation:SegmentationTask"}


def available() -> list[str]:
    """Names of the tasks."""
    return sorted(_TASKS)


def get(name: str, options: argparse.Namespace):
    """The task `name` on the data that `options` names."""
    choose(name, _TASKS, "task")
    module, attribute = _TASKS[name].split(":")
    return getattr(importlib.import_module(module), attribute)(options)
