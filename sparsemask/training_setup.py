"""What every training command does first and last: resolve its flags, open its run; draw, announce, report."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from sparsemask import datasets, flags, runs, tasks
from sparsemask import options as opt
from sparsemask import report as page
from sparsemask.config import RunConfig
from sparsemask.devices import Arithmetic, arithmetic
from sparsemask.engine import checkpoint, distributed
from sparsemask.engine.records import read_rows
from sparsemask.errors import UseError, say
from sparsemask.pictures import draw_curves
from sparsemask.tracking.names import check as check_trackers
from sparsemask.tracking.trackers import Trackers
from sparsemask.weights import describe_safetensors

_PATHS = (
    "voc_root", "data_root", "im_path", "gt_path", "training_list", "eval_list", "class_names", "label_map",
    "class_weights", "pretrained_model", "ft_model", "search_checkpoint", "hr_path", "dir_data", "teacher",
)  # fmt: skip
# What may differ when a run is resumed: where and how fast it is computed, not what.
RUNTIME = ("gpu", "n_worker", "track", "track_samples", "exp_path", "name", "resume", "config")


_ROWS = 20  # of metrics that even a short run has, for its curves

Resolve = Callable[[RunConfig, Mapping[str, Any]], RunConfig]
"""Settles a configuration, given the flags that the user named."""
DefaultFlags = Callable[[dict[str, Any]], dict[str, Any]]
"""Flags that say what is started from where those of the command line and ``--config`` do not."""


@dataclass(frozen=True)
class Context:
    """Configuration, run directory, device and checkpoint of a training command.

    Attributes:
        config: the run's configuration.
        run: the run's folder.
        arithmetic: the device and the type that is computed in.
        task: the task on the data of the configuration.
        state: the checkpoint to go on from; None for a run that begins.
        given: the flags that the user named on the command line; empty for a resumed run.
    """

    config: RunConfig
    run: runs.Run
    arithmetic: Arithmetic
    task: tasks.Task
    state: dict[str, Any] | None = None
    given: Mapping[str, Any] = field(default_factory=dict)

    def with_config(self, config: RunConfig) -> Context:
        """The same with another configuration."""
        return dataclasses.replace(self, config=config)

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return distributed.rank() == 0

    def say(self, text: str) -> None:
        """Print a line, once."""
        if self.main:
            say(text)

    @contextlib.contextmanager
    def clean(self) -> Iterator[None]:
        """Inside, an error before the first checkpoint removes the folder that this process made."""
        try:
            yield
        except BaseException:
            if self.main and self.run.fresh and not self.run.last.exists():
                self.run.discard()
            raise

    def note_start(self, **entries: object) -> None:
        """Write to the run's folder what it is, where it is computed, and the configuration as it is now.

        Args:
            entries: of run.json, by name.
        """
        if self.main:
            self.run.note(environment=page.environment(self.arithmetic.device), **entries)
            if self.state is None:
                opt.write_config(self.run.config, self.config)

    def track(self, trackers: Trackers, verb: str) -> None:
        """Begin to track the run, or go on with it."""
        if self.main:
            trackers.begin(self.run, verb, self.config.flat(), self.state["step"] if self.state else 0)

    def draw_training(self, model: nn.Module) -> None:
        """Draw the curves of the run's metrics, and predictions on validation samples."""
        draw_curves(read_rows(self.run.metrics), self.run.pictures / "curves.png")
        self.task.draw(self.task.samples(model, self.arithmetic), self.run.pictures / "samples.png")

    def metric_text(self, result: Mapping[str, float]) -> str:
        """The task's primary metric among those of the last validation, with its name."""
        name = self.task.primary
        return f"{name} {result.get(name, float('nan')):.4f}"

    def describe(self, file: Path) -> None:
        """Have a network's file say what it is for: the task, its classes and colours, how pictures are normalised.

        To be called before anything refers to the file by its digest.
        """
        describe_safetensors(file, self.task.description())

    def announce(self, lines: Sequence[str | None], files: Sequence[str] = (), then: str | None = None) -> None:
        """Print what came out of the run and where it lies, and write its report.

        Args:
            lines: the results; None is passed over.
            files: of the run's folder that are named beside its pictures.
            then: the verb that goes on from the run, whose command line is printed last.
        """
        for line in filter(None, lines):
            self.say(line)
        self.say(f"run: {self.run.folder} ({', '.join([*files, f'pictures in {self.run.pictures}'])})")
        self.say(f"report: {page.write_report(self.run)}")
        if then is not None:
            self.say(f"next: {page.next_command(self.run, then)}")


class Resolved(NamedTuple):
    """A command's configuration, the lines to print about it, and the preset that it was laid over."""

    config: RunConfig
    line: str | None
    preset: str


def resolve_config(
    parser: opt.Parser,
    given: dict[str, Any],
    training: bool = True,
    default_flags: DefaultFlags | None = None,
) -> Resolved:
    """Merge the command line over ``--config``, inherited flags and a preset.

    Args:
        parser: of the command.
        given: the flags on the command line.
        training: False for evaluation, which has no budget: of a preset only the sample set's size counts, and other
            images are padded to 513 as published.
        default_flags: more flags, from those of the command line and ``--config``: what is started from where they do
            not say it.

    Raises:
        UseError: flags that no such command can have, data that are gone.
    """
    # A preset may serve several tasks, each with its own flags; a user's file is meant for this one.
    ours = bool(given.get("config") and opt.preset_name(given["config"], parser.get_default("space")))
    from_file = parser.from_file(given["config"], foreign=ours) if given.get("config") else {}
    from_file = datasets.without_replaced(from_file, given)
    if default_flags is not None:
        from_file |= default_flags({**from_file, **given})
    inherited = datasets.inherited_flags(parser, {**from_file, **given}, training)
    requested = {"task": parser.get_default("task"), **inherited.flags, **from_file, **given}
    data, preset, line = datasets.choose_data(requested, training)
    preset = inherited.preset or preset
    # A preset's budget is the whole budget.
    if ours:
        preset = given["config"]
    layers = [parser.from_file(preset, foreign=True), data, inherited.flags, from_file, given]
    # A run's file names every flag that there was then; what came later is at its default, whatever presets say now.
    if not ours and 2 * len(from_file) > len(parser.actions()):
        layers[0] = {name: value for name, value in layers[0].items() if name in from_file}
    if not training:
        layers[0] = {k: v if preset == "sample" else 513 for k, v in layers[0].items() if k == "crop_size"}
    for low, high in ((layers[0], from_file), ({**layers[0], **from_file}, given)):
        if high.get("max_epoch") and not high.get("max_iter") and low.get("max_iter"):
            high.setdefault("max_iter", None)  # epochs that are asked for win over a lower layer's steps
        for group in parser.alternatives():
            if any(high.get(name) is not None for name in group):
                high.update({name: high.get(name) for name in group if low.get(name) is not None})
    config = parser.resolve(*layers)
    if training and config.device is not None and config.device.type == "int8":
        raise UseError("--type int8 computes trained networks: train with --type bfloat16")
    users = (data, inherited.flags, {} if ours else from_file, given)
    if training and "log_interval" in layers[0] and not any("log_interval" in layer for layer in users):
        config = _with_curves(config)
    if inherited.run is not None and parser.verb == "retrain" and "inherit" in config:
        if weights := datasets.encoder_weights(inherited.run, config):
            inherited.flags["pretrained_model"] = weights
            config = config.replace(pretrained_model=weights)
    lines = [line, inherited.line(parser)]
    if training:
        lines.append(f"preset: {preset}")
    flags.check_task(config, parser.get_default("task"))
    # A run must find its files from any folder.
    paths = {name: config.get(name) for name in _PATHS}
    config = config.replace(**{n: str(Path(v).resolve()) for n, v in paths.items() if v and Path(v).exists()})
    return Resolved(config, "\n".join(filter(None, lines)) or None, preset)


def _with_curves(config: RunConfig) -> RunConfig:
    """The configuration with a preset's steps between rows of metrics, fewer where a short run would have few rows."""
    interval, steps = config.training.log_interval, config.training.max_iter
    if not steps or not interval or interval * _ROWS <= steps:
        return config
    return config.replace(log_interval=max(1, steps // _ROWS))


def prepare(config: RunConfig) -> None:
    """Draw the sample set, if it is wanted, in one process before the others read it."""
    if config.data.sample:
        if distributed.rank() == 0:
            tasks.find(config.data.task).sample_folder()
        distributed.barrier()


def device(config: RunConfig) -> Arithmetic:
    """Join the process group and choose the device."""
    if torch.backends.cudnn.is_available():
        torch.backends.cudnn.deterministic = True
    _, _, local = distributed.start(None if config.device.gpu >= 0 else False)
    return arithmetic(config.device.gpu, config.device.type, local)


def open_training(
    parser: opt.Parser,
    argv: Sequence[str] | None,
    resolve: Resolve | None = None,
    default_flags: DefaultFlags | None = None,
    beside: str | Path | None = None,
) -> Context:
    """Begin or resume a run.

    Args:
        parser: of the command.
        argv: the command line; None: the process's own.
        resolve: settles the configuration of a new run, or raises UseError, before anything is written.
        default_flags: as in :func:`resolve_config`.
        beside: a folder in which the run is made in place of --exp_path, for trials that leave nothing.

    Raises:
        UseError: nothing can be trained from this configuration, or a run to resume is asked for where none is left.
    """
    given = parser.given(argv)
    resume_from = given.get("resume")
    if beside is not None and resume_from:
        raise UseError("--dry_run is of runs that begin: leave --resume out")
    if resume_from == "auto":
        if not given.get("name"):
            raise UseError("--resume without a folder needs --name, to know which run is meant")
        folder = Path(given.get("exp_path") or parser.get_default("exp_path")) / given["name"]
        resume_from = folder if (folder / "config.yaml").exists() else None
    if resume_from:
        return _reopen(parser, given, runs.find(resume_from))
    config, line, preset = resolve_config(parser, given, default_flags=default_flags)
    check_trackers(config.run.track)
    torch_device = device(config)
    if line and distributed.rank() == 0:
        say(line)
    if resolve is not None:
        config = resolve(config, given)
    task = open_task(config)
    if beside is not None and distributed.world() > 1:
        raise UseError("--dry_run tries a run in one process: start it without torchrun")
    where = task.config if beside is None else task.config.replace(exp_path=str(beside))
    run = _shared_run(where, parser.verb)
    if distributed.rank() == 0:
        run.note(preset=preset)
    return Context(task.config.replace(name=run.folder.name), run, torch_device, task, given=given)


def open_task(config: RunConfig) -> tasks.Task:
    """The task on the data of a configuration, its lists read and checked; its own `config` has what it settled."""
    prepare(config)
    task = tasks.get(config.data.task, config)
    task.check()
    return task


def _shared_run(config: RunConfig, verb: str) -> runs.Run:
    """The first process makes the folder; the others learn its name."""
    if distributed.world() == 1:
        return runs.create(config, verb)
    if distributed.rank() == 0:
        run = runs.create(config, verb)
        distributed.from_first(run.folder.name)
        return run
    return runs.Run(Path(config.run.exp_path) / distributed.from_first(""))


def _reopen(parser: opt.Parser, given: dict[str, Any], run: runs.Run) -> Context:
    """Resume a run with its own configuration; only device and loader processes may change."""
    state = checkpoint.load(run.last) if run.last.exists() else None
    saved = state["config"] if state else parser.from_file(run.config)
    unknown = set(saved) - set(parser.actions())
    if unknown or (state and state.get("verb") != parser.verb):
        made_by = state.get("verb", "another version") if state else "another version"
        raise UseError(f"{run.folder}: a run of '{made_by}', which {parser.prog} cannot go on with")
    saved = parser.checked(saved, run.last if state else run.config)
    checkpoint.require(saved, parser, run.last if state else run.config)
    ignored = sorted(k for k, v in given.items() if k not in RUNTIME and saved.get(k) != v)
    run_flags = {"exp_path": str(run.folder.parent), "name": run.folder.name}
    config = parser.resolve(saved, {k: given[k] for k in RUNTIME[:4] if k in given}, run_flags)
    check_trackers(config.run.track)
    torch_device = device(config)
    if distributed.rank() == 0:
        run.hold()
        if ignored:
            print(f"note: resuming by the run's own configuration, not by {', '.join('--' + flag for flag in ignored)}")
        done = (
            ", which is finished: only its last words are written again"
            if run.info().get("state") == "finished"
            else ""
        )
        say(f"resuming {run.folder} " + (f"after step {state['step']}" if state else "from the start") + done)
    task = open_task(config)
    return Context(task.config, run, torch_device, task, state)
