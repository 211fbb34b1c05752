"""How the verbs that take a trained network find it: a run's, the newest run's, or that of a file of weights."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import spaces
from sparsemask import flags, runs, session
from sparsemask.errors import UseError
from sparsemask.options import Parser, natural


def family_of(space: str):
    """The module of this folder that knows the networks of a space."""
    return importlib.import_module(f"retrain.{spaces.get(space).family}")


def for_task(space: str, task: str | None):
    """The space of a name, with the flags that a task's data have, where it serves tasks of several kinds."""
    found = spaces.get(space)
    return found.for_task(task) if task else found


def add_trained(parser: Parser, space: str, task: str | None = None) -> None:
    """The flags that say which network, and on which data it runs; the family's own must still be added."""
    parser.add_argument("--config", help="YAML file of flags")
    parser.add_argument("--run", default=None, help="the retrain run (default: the newest)")
    parser.add_argument("--exp_path", default="runs", help="folder that holds the runs (default: runs)")
    for add in (flags.add_data, flags.add_network, flags.add_device):
        add(parser, for_task(space, task))
    parser.add_argument("--checkpoint", default="last", help="of the run: last or best (default: last)")
    parser.add_argument("--seed", type=natural, default=0, help="of a random-k mask (default: 0)")


def read_flags(parser: Parser, argv: Sequence[str] | None, space: str) -> dict:
    """What the command line and its --config give; UseError where they name two networks."""
    given = parser.given(argv)
    given = {**(parser.from_file(given["config"], foreign=True) if given.get("config") else {}), **given}
    if given.get("run"):
        for name in ("pretrained_model", "mask_path"):
            if name in given:
                raise UseError(f"--run {given['run']} and --{name} {given[name]}: give the one or the other")
    given.setdefault("space", space)
    return given


def open_trained(parser: Parser, given: dict):
    """(options, network with its weights in evaluation, arithmetic, run or None)."""
    space, run = given["space"], None
    if not given.get("pretrained_model"):
        if given.get("run"):
            run = runs.find(given["run"])
        else:
            run = runs.newest(given.get("exp_path", "runs"), "retrain", space)
    options, model, where = family_of(space).restore(parser, given, run)
    session.prepare(options)
    return options, model, where, run
