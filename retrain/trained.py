"""Trained networks: found by a command's flags, their evaluation recorded, compared with their search."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from sparsemask import datasets, families, flags, models, runs, spaces, tasks, training_setup
from sparsemask import report as page
from sparsemask.config import RunConfig, Section, flag
from sparsemask.devices import Arithmetic
from sparsemask.engine import checkpoint, distributed
from sparsemask.errors import UseError, describe, say
from sparsemask.families import Restored, RetrainingFamily
from sparsemask.files import shown_path
from sparsemask.options import Parser, natural
from sparsemask.spaces import Space
from sparsemask.tasks import Scores, Task
from sparsemask.training_setup import Context

_NOTICED = 0.0005  # of a metric; smaller differences from the search are not shown


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedSection(Section):
    """Which trained network."""

    config: str | None = flag(help="YAML file of flags", transient=True)
    run: str | None = flag(help="the retrain run (default: the newest)")
    exp_path: str = flag("runs", help="folder that holds the runs (default: runs)")
    checkpoint: str = flag("last", help="of the run: last or best (default: last)")
    seed: int = flag(0, natural, help="of a random-k mask (default: 0)")


def family_of(space: str) -> RetrainingFamily:
    """Return the family that retrains and loads the networks of a space."""
    return families.find("retrain", spaces.get(space))


def for_task(space: str, task: str | None) -> Space:
    """Return a space by name, for a task's data if one is named."""
    instance = spaces.get(space)
    return instance.for_task(task) if task else instance


def trained_parser(parser: Parser, section: type[Section], space: str, task: str | None) -> Parser:
    """Add the flags of a command on a trained network: network, data, device, the command's section, the family's own.

    Args:
        parser: of the command; it is returned.
        section: of role "evaluation", the command's own.
        space: name of the network's space.
        task: whose data have flags; None: the space's.
    """
    parser.add_section("run", TrainedSection, only=("config", "run", "exp_path"))
    for add in (flags.add_data, flags.add_network, flags.add_device):
        add(parser, for_task(space, task))
    parser.add_section("run", TrainedSection, only=("checkpoint", "seed"))
    parser.add_section("evaluation", section)
    family_of(space).add_eval_options(parser)
    return parser


def read_flags(parser: Parser, argv: Sequence[str] | None, space: str) -> dict:
    """Return the flags of the command line and its --config.

    Args:
        parser: of the command.
        argv: the command line; None: the process's.
        space: name of the space, if no flag names one.

    Raises:
        UseError: they name two networks.
    """
    given = parser.given(argv)
    given = {**(parser.from_file(given["config"], foreign=True) if given.get("config") else {}), **given}
    if given.get("pretrained_model"):
        given["pretrained_model"] = models.path_of(given["pretrained_model"])
    if given.get("run"):
        for name in ("pretrained_model", "mask_path"):
            if name in given:
                raise UseError(f"--run {given['run']} and --{name} {given[name]}: give the one or the other")
    given.setdefault("space", space)
    return given


def open_trained(parser: Parser, given: dict) -> Restored:
    """Load the network of --pretrained_model, of --run, or of the newest run.

    Args:
        parser: of the command.
        given: as :func:`read_flags` returns it.

    Raises:
        UseError: no such network, or flags that do not fit it.
    """
    space, run = given["space"], None
    if not given.get("pretrained_model"):
        if given.get("run"):
            run = runs.find(given["run"])
        else:
            run = runs.newest(given.get("exp_path", "runs"), "retrain", space)
    restored = family_of(space).restore(parser, given, run)
    training_setup.prepare(restored.config)
    return restored


@dataclass(frozen=True)
class Source:
    """The file of a network's weights, and the configuration to use it with.

    Attributes:
        config: the command's, completed by the run's, if there is one.
        path: of the file.
        state: its checkpoint, if it is a run's; None for a weights file of any origin.
        saved: the run's flags that the command knows; empty without a run.
        given: the flags that the user named.
    """

    config: RunConfig
    path: Path
    state: dict | None
    saved: dict
    given: dict


def read_source(parser: Parser, given: dict, run: runs.Run | None, excluded: Collection[str]) -> Source:
    """Resolve a command's configuration for the network of a run, or of ``--pretrained_model``.

    Args:
        parser: of the command.
        given: the flags that the user named.
        run: the run, or None for ``--pretrained_model``.
        excluded: flags that are not taken from the run.

    Raises:
        UseError: no such checkpoint, or flags that do not fit it.
    """
    if run is None:
        config, line, _ = training_setup.resolve_config(parser, given, training=False)
        if line:
            say(line)
        return Source(config, Path(config["pretrained_model"]), None, {}, given)
    name = given.setdefault("checkpoint", "last")
    if name not in ("last", "best"):
        raise UseError(f"--checkpoint {name}: last or best")
    path = run.checkpoints / f"{name}.pt"
    state = checkpoint.load(path, given["space"])
    saved = checkpoint.saved_flags(state, parser, path, excluded)
    config = parser.resolve(datasets.without_replaced(saved, given), given)
    return Source(config, path, state, saved, given)


def ready(model: nn.Module, where: Arithmetic) -> nn.Module:
    """Move a network to its device and put it into evaluation mode."""
    return model.to(where.device, where.parameters).eval()


def prediction_writer(task: Task, out: str | None) -> Callable | None:
    """Return the function that writes each prediction into the folder `out`, which is created; None without one."""
    if not out:
        return None
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    return functools.partial(task.write, folder)


def record_evaluation(restored: Restored, task: Task, scores: Scores, entries: dict) -> None:
    """Draw an evaluation's scores and record them in the run's folder, if the network belongs to a run.

    Args:
        restored: the network.
        task: that it was evaluated on.
        scores: of the evaluation.
        entries: of run.json, by name.
    """
    run = restored.run
    if run is None:
        return
    try:
        task.draw_scores(scores, run.pictures)
        if scores.confusion is not None:
            page.record_confusion(run, task.classes, scores.confusion)
        run.note(**entries)
        say(f"report: {page.write_report(run)}")
    except OSError as error:  # the metrics are printed; a folder that may not be written is not worth failing for
        distributed.warn(f"not written into {run.folder}: {describe(error) or error}")


def shortfall(context: Context, result: dict) -> str | None:
    """Return a line with advice if the run's metric is below its search's on the same data; None otherwise.

    Args:
        context: of the finished run; higher values of its task's `primary` metric are better.
        result: the metrics of the run's last validation.
    """
    task, config = context.task, context.config
    search = datasets.search_of(config.family.mask_path)
    if search is None or search.folder.resolve() == context.run.folder.resolve():
        return None
    before = search.info().get("result")
    before = before.get(task.primary) if isinstance(before, dict) else None
    metric = result.get(task.primary)
    if not (isinstance(before, float) and isinstance(metric, float)) or not _same_data(context, search):
        return None
    if not metric < before - _NOTICED or math.isnan(before):
        return None
    advice = ""
    if config.get("inherit", "all") != "all" and not config.get("ft_model"):
        advice = ", or --inherit all, which starts from the search's weights"
    steps = config.training.max_iter
    longer = f"a longer run ({f'--max_iter {2 * steps}' if steps else '--max_epoch'})"
    where = shown_path(search.folder)
    return f"note: {task.primary} {metric:.4f} is below its search's {before:.4f} ({where}): {longer} may help{advice}"


def _same_data(context: Context, search) -> bool:
    """Whether both were scored on the same data, as far as flags say."""
    saved, config = datasets.read_flags(search), context.config
    kind = tasks.find(config["task"])
    names = ("task", "sample", *kind.data_flags, *kind.score_flags, "n_class", "eval_limit")
    return all((saved.get(name) or None) == (config.get(name) or None) for name in names)
