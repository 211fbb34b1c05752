"""What several families' pruning has in common: files and notes, and the data that masks are measured on."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from sparsemask import datasets, inherit, tasks, training_setup
from sparsemask.errors import UseError, say
from sparsemask.options import following, given_flags
from sparsemask.runs import Run


def output_path(out: str | None, suffix: str, kind: str) -> Path:
    """The mask file to write; UseError where it cannot be one of `suffix` in a folder that is there.

    kind: what the file holds, with its verb, for the message.
    """
    path = Path(out or f"mask{suffix}")
    if path.suffix != suffix:
        raise UseError(f"--out {path}: {kind} a {suffix} file")
    if not path.parent.is_dir():
        raise UseError(f"--out {path}: no such folder: {path.parent}")
    return path


def origin_note(options: argparse.Namespace, run: Run | None, path: Path, digest: str, rule: Sequence[str]) -> dict:
    """Where a mask comes from, for the json beside it: run, checkpoint and the flags that are its rule."""
    return {
        "space": options.space,
        "run": str(run.folder.resolve()) if run else None,
        "checkpoint": str(path.resolve()),
        "sha256": digest,
        "rule": {name: getattr(options, name) for name in rule},
    }


def next_line(out: Path, run: Run | None, saved: dict) -> str:
    """The line that says what to do with a mask file. saved: the flags of its search."""
    said = following("retrain", f"--mask_path {shlex.quote(str(out))}", saved, run.folder if run else None)
    return f"next: {said}"


def use_search_data(options: argparse.Namespace, saved: dict, config: dict) -> None:
    """The search's own validation data where the command line names no others; the network's numbers."""
    given = given_flags(options)
    if saved.get("task") in tasks.siblings(options.task) and "task" not in given:
        options.task = saved["task"]
    kind = tasks.find(options.task)
    asked = {n: said for n in (*kind.data_flags, "sample") if (said := vars(options).get(n))}
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
    training_setup.prepare(options)
