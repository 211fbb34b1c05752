"""What every training verb does before it trains: flags, data, device, run folder, checkpoint to go on from."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sparsemask import datasets, flags, inherit, runs, tasks
from sparsemask import options as opt
from sparsemask.devices import Arithmetic, arithmetic
from sparsemask.engine import checkpoint, distributed
from sparsemask.errors import UseError, say

_PATHS = ("voc_root", "data_root", "im_path", "gt_path", "training_list", "eval_list", "class_names")
_PATHS += ("pretrained_model", "ft_model", "search_checkpoint", "hr_path", "dir_data")
# What may differ when a run is resumed: where and how fast it is computed, not what.
RUNTIME = ("gpu", "n_worker", "exp_path", "name", "resume", "config")


@dataclass
class Context:
    """Resolved options, run directory, device and checkpoint of a training command.

    Attributes:
        options: the run's flags. A family's `build` settles those that only weights or masks tell.
        run: the run's folder.
        arithmetic: the device and the type that is computed in.
        task: the task on the data of the options.
        state: the checkpoint to go on from; None for a run that begins.
    """

    options: argparse.Namespace
    run: runs.Run
    arithmetic: Arithmetic
    task: tasks.Task
    state: dict | None = None

    @property
    def main(self) -> bool:
        """Whether this process writes and speaks."""
        return distributed.rank() == 0

    def say(self, text: str) -> None:
        """Print a line, once."""
        if self.main:
            say(text)

    @contextlib.contextmanager
    def clean(self) -> Iterator[None]:
        """Inside, what stops a run before its first checkpoint takes the folder this process made with it."""
        try:
            yield
        except BaseException:
            if self.main and self.run.fresh and not self.run.last.exists():
                self.run.discard()
            raise


def resolve_options(
    parser: opt.Parser, given: dict, training: bool = True, default_flags: Callable[[dict], dict] | None = None
) -> tuple[argparse.Namespace, str | None]:
    """Flags from the command line, ``--config``, the run that is started from and a preset; and lines to print.

    training: False for evaluation, which has no budget: of a preset only the sample set's size counts, and other
    pictures are padded to 513 as published. default_flags: more flags, from those of the command line and ``--config``:
    what is started from where they do not say it.
    """
    # A preset may serve several tasks, each with its own flags; a user's file is meant for this one.
    ours = bool(given.get("config") and opt.preset_name(given["config"], parser.get_default("space")))
    filed = parser.from_file(given["config"], foreign=ours) if given.get("config") else {}
    filed = datasets.without_replaced(filed, given)
    if default_flags is not None:
        filed |= default_flags({**filed, **given})
    taken = inherit.take(parser, {**filed, **given}, training)
    asked = {"task": parser.get_default("task"), **taken.flags, **filed, **given}
    data, preset, line = datasets.choose_data(asked, training)
    preset = taken.preset or preset
    # A preset's budget is the whole budget.
    if given.get("config") and opt.preset_name(given["config"], parser.get_default("space")):
        preset = given["config"]
    layers = [parser.from_file(preset, foreign=True), data, taken.flags, filed, given]
    if not training:
        layers[0] = {k: v if preset == "sample" else 513 for k, v in layers[0].items() if k == "crop_size"}
    for low, high in ((layers[0], filed), ({**layers[0], **filed}, given)):
        if high.get("max_epoch") and not high.get("max_iter") and low.get("max_iter"):
            high.setdefault("max_iter", None)  # epochs that are asked for win over a lower layer's steps
    options = parser.resolve(*layers)
    if taken.run is not None and parser.verb == "retrain" and "inherit" in parser.actions():
        if weights := inherit.encoder_weights(taken.run, options):
            options.pretrained_model = taken.flags["pretrained_model"] = weights
    lines = [line, taken.line(parser)]
    if training:
        options.preset = preset
        lines.append(f"preset: {preset}")
    options.given = given  # what stands on the command line, for those who must know whether a value was asked for
    flags.check_task(options, parser.get_default("task"))
    for name in _PATHS:  # a run must find its files from any folder
        value = getattr(options, name, None)
        if value and Path(value).exists():
            setattr(options, name, str(Path(value).resolve()))
    return options, "\n".join(filter(None, lines)) or None


def prepare(options: argparse.Namespace) -> None:
    """Draw the sample set, if it is wanted, in one process before the others read it."""
    if options.sample:
        if distributed.rank() == 0:
            tasks.find(options.task).sample_folder()
        distributed.barrier()


def device(options: argparse.Namespace) -> Arithmetic:
    """Join the process group and choose the device."""
    if torch.backends.cudnn.is_available():
        torch.backends.cudnn.deterministic = True
    _, _, local = distributed.start(None if options.gpu >= 0 else False)
    return arithmetic(options.gpu, options.type, local)


def open_training(
    parser: opt.Parser,
    argv: Sequence[str] | None,
    check: Callable[[argparse.Namespace], None] | None = None,
    default_flags: Callable[[dict], dict] | None = None,
) -> Context:
    """Begin or resume a run.

    Args:
        parser: of the command.
        argv: the command line; None: the process's own.
        check: raises UseError before anything is written for a new run.
        default_flags: as in :func:`resolve_options`.
    """
    given = parser.given(argv)
    wanted = given.get("resume")
    if wanted == "auto":
        if not given.get("name"):
            raise UseError("--resume without a folder needs --name, to know which run is meant")
        folder = Path(given.get("exp_path") or parser.get_default("exp_path")) / given["name"]
        wanted = folder if (folder / "config.yaml").exists() else None
    if wanted:
        return _reopen(parser, given, runs.find(wanted))
    options, line = resolve_options(parser, given, default_flags=default_flags)
    where = device(options)
    if line and distributed.rank() == 0:
        say(line)
    if check is not None:
        check(options)
    task = open_task(options)
    run = _shared_run(options, parser.verb)
    if distributed.rank() == 0:
        run.note(preset=options.preset)
    return Context(options, run, where, task)


def open_task(options: argparse.Namespace) -> tasks.Task:
    """The task on the data of the options, its lists read and checked."""
    prepare(options)
    task = tasks.get(options.task, options)
    task.check()
    return task


def _shared_run(options: argparse.Namespace, verb: str) -> runs.Run:
    """The first process makes the folder; the others learn its name."""
    if distributed.world() == 1:
        return runs.create(options, verb)
    names: list = [None]
    if distributed.rank() == 0:
        run = runs.create(options, verb)
        names = [options.name]
    torch.distributed.broadcast_object_list(names, 0)
    options.name = names[0]
    return run if distributed.rank() == 0 else runs.Run(Path(options.exp_path) / options.name)


def _reopen(parser: opt.Parser, given: dict, run: runs.Run) -> Context:
    """Go on with a run from its own configuration; only where it is computed may change."""
    state = checkpoint.load(run.last) if run.last.exists() else None
    saved = state["config"] if state else parser.from_file(run.config)
    unknown = set(saved) - set(parser.actions())
    if unknown or (state and state.get("verb") != parser.verb):
        made_by = state.get("verb", "another version") if state else "another version"
        raise UseError(f"{run.folder}: a run of '{made_by}', which {parser.prog} cannot go on with")
    saved = parser.checked(saved, run.last if state else run.config)
    checkpoint.require(saved, parser, run.last if state else run.config)
    other = sorted(k for k, v in given.items() if k not in RUNTIME and saved.get(k) != v)
    options = parser.resolve(saved, {k: given[k] for k in ("gpu", "n_worker") if k in given})
    options.exp_path, options.name = str(run.folder.parent), run.folder.name
    where = device(options)
    if distributed.rank() == 0:
        run.hold()
        if other:
            print(f"note: resuming by the run's own configuration, not by {', '.join('--' + o for o in other)}")
        done = (
            ", which is finished: only its last words are written again"
            if run.info().get("state") == "finished"
            else ""
        )
        say(f"resuming {run.folder} " + (f"after step {state['step']}" if state else "from the start") + done)
    return Context(options, run, where, open_task(options), state)


def rewrite_config(context: Context) -> None:
    """Write the run's configuration again, with what was settled since (weights found, the mask's copy)."""
    opt.write_config(context.run.config, context.options)


def warn(text: str) -> None:
    """One line on standard error, from the first process only."""
    if distributed.rank() == 0:
        say(text, sys.stderr)
