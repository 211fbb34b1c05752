"""What several families' pruning has in common: the data that masks are measured on."""

from __future__ import annotations

import argparse

from sparsemask import datasets, session, tasks
from sparsemask.errors import say


def settle_data(options: argparse.Namespace, saved: dict, config: dict) -> None:
    """The search's own validation data where the command line names no others; the network's numbers."""
    given = getattr(options, "given", {})
    if saved.get("task") in tasks.siblings(options.task) and "task" not in given:
        options.task = saved["task"]
    kind = tasks.find(options.task)
    if not any(getattr(options, name, None) for name in (*kind.data_flags, "sample")):
        for name in (*kind.data_flags, *kind.score_flags, "sample"):
            if name in saved and name not in given:
                setattr(options, name, saved[name])
    vars(options).update(config)
    chosen, _, line = datasets.choose_data({k: v for k, v in vars(options).items() if v}, training=False)
    for name, value in chosen.items():
        setattr(options, name, value)
    if line:
        say(line)
    session.prepare(options)
