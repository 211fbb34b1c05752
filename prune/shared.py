"""What several families' pruning has in common: the data that masks are measured on, and the line that ends it."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from sparsemask import datasets, inherit, session, tasks
from sparsemask.errors import say
from sparsemask.options import following
from sparsemask.runs import Run


def next_line(out: Path, run: Run | None, saved: dict) -> str:
    """The line that says what to do with a mask file. saved: the flags of its search."""
    said = following("retrain", f"--mask_path {shlex.quote(str(out))}", saved, run.folder if run else None)
    return f"next: {said}"


def settle_data(options: argparse.Namespace, saved: dict, config: dict) -> None:
    """The search's own validation data where the command line names no others; the network's numbers."""
    given = getattr(options, "given", {})
    if saved.get("task") in tasks.siblings(options.task) and "task" not in given:
        options.task = saved["task"]
    kind = tasks.find(options.task)
    asked = {n: getattr(options, n) for n in (*kind.data_flags, "sample") if getattr(options, n, None)}
    asked["task"] = options.task
    names = (*kind.data_flags, *kind.score_flags, "sample")
    for name, value in inherit.data_of(saved, asked, names, options.run or options.checkpoint or "the search").items():
        if name in names and name not in given:
            setattr(options, name, value)
    vars(options).update(config)
    chosen, _, line = datasets.choose_data({k: v for k, v in vars(options).items() if v}, training=False)
    for name, value in chosen.items():
        setattr(options, name, value)
    if line:
        say(line)
    session.prepare(options)
