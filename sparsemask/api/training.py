"""Search, prune, retrain and evaluate as functions, on pictures that a program holds or on files.

They use the driver of the commands: runs, checkpoints and files are the same, and a run that was begun here goes on
from the command line where its data are files.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from sparsemask import families, runs, spaces, tasks
from sparsemask.api.prediction import open_predictor
from sparsemask.engine.callbacks import Callback, TrainingStep
from sparsemask.errors import UseError
from sparsemask.options import Parser, spelled
from sparsemask.plugins import GIVEN, trust, trusting
from sparsemask.prediction import Predictor
from sparsemask.prune import prune as prune_command
from sparsemask.retrain import eval as eval_command
from sparsemask.retrain import train as retrain_command
from sparsemask.retrain.trained import family_of, open_trained
from sparsemask.search import run as search_command
from sparsemask.tasks.segmentation.given import WHERE, given_task
from sparsemask.training_setup import Context

__all__ = ["Callback", "RunResult", "TrainingStep", "evaluate", "prune", "retrain", "search"]


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: of the run.
        metrics: of its last validation, by name.
    """

    folder: Path
    metrics: Mapping[str, float] = field(default_factory=dict)

    @property
    def report(self) -> Path:
        """The page on the run."""
        return self.folder / "report.html"

    def network(self) -> nn.Module:
        """The trained network of a retraining, in evaluation mode, on the CPU."""
        run = runs.find(self.folder)
        return family_of(str(run.info().get("space"))).load_run(run)


def search(
    *,
    train: Sequence[Any] | None = None,
    val: Sequence[Any] | None = None,
    classes: Sequence[str] | None = None,
    space: str = "connectivity",
    callbacks: Sequence[Callback] | Callback = (),
    **flags: Any,
) -> RunResult:
    """Learn the masks of a space, as ``sparsemask search`` does.

    Args:
        train: pairs (picture, label) to train on: a list, or any object with a length and indices. A picture is a
            file, a Pillow image, an array (H, W, 3) or a tensor (3, H, W), uint8 or floats of 0 to 1; a label a file
            or an array (H, W) of class numbers. None: flags name files (``im_path``, ``sample``, ...).
        val: those to validate on.
        classes: names of the classes, where `train` is given.
        space: the search space.
        callbacks: called with a :class:`TrainingStep` after every step; one that returns true ends the training.
        flags: of the command by name, without dashes: ``max_iter=400, lr=0.01, budget_ms=20, patience=5``. `augment`
            may be the function or transform itself.

    Raises:
        UseError: nothing can be trained from these.
    """
    given = {**_data(train, val, classes), "space": space, **flags}
    find = lambda parser: families.find("search", _space(parser))
    return _trained(search_command, find, given, callbacks)


def prune(searched: RunResult | str | os.PathLike[str], *, out: str | os.PathLike[str], **flags: Any) -> Path:
    """Make the masks of a search hard, as ``sparsemask prune`` does.

    Args:
        searched: the search, or its run's folder.
        out: the mask file to write.
        flags: of the command: ``thres=0.001``, ``budget_ms=20``.

    Returns:
        The mask file.

    Raises:
        UseError: no such run, or no network could be built from the mask.
    """
    run = runs.find(_folder(searched))
    given = {"run": str(run.folder), "out": str(out), **flags}
    argv = spelled({name: _plain(value) for name, value in given.items()})
    with trusting(argv):
        parser, given = prune_command.read(argv, str(run.info().get("space")))
        families.find("prune", _space(parser)).prune(parser.resolve(given), given, run)
    return Path(out)


def retrain(
    mask: str | os.PathLike[str],
    *,
    train: Sequence[Any] | None = None,
    val: Sequence[Any] | None = None,
    classes: Sequence[str] | None = None,
    callbacks: Sequence[Callback] | Callback = (),
    **flags: Any,
) -> RunResult:
    """Build the small network of a mask and train it, as ``sparsemask retrain`` does.

    Args:
        mask: a mask file, or a named mask.
        train: as for :func:`search`. None: the data of the mask's search, or those that flags name.
        val: likewise.
        classes: likewise.
        callbacks: likewise.
        flags: of the command: ``max_iter=400, inherit="all"``.

    Raises:
        UseError: nothing can be trained from these.
    """
    given = {**_data(train, val, classes), "mask_path": str(mask), **flags}
    return _trained(retrain_command, lambda parser: family_of(parser.get_default("space")), given, callbacks)


def evaluate(
    network: RunResult | nn.Module | Predictor | str | os.PathLike[str],
    *,
    val: Sequence[Any] | None = None,
    classes: Sequence[str] | None = None,
    flips: bool = False,
    scales: Sequence[float] = (1.0,),
    limit: int = 0,
) -> dict[str, Any]:
    """Metrics of a trained network.

    Args:
        network: a retraining or its folder; with `val` also whatever :func:`sparsemask.open_predictor` opens.
        val: pairs (picture, label) as for :func:`search`; None: the run's own validation pictures.
        classes: names of the classes, where the network does not say them.
        flips: average over mirrored copies.
        scales: average over copies enlarged by these factors.
        limit: only the first pictures, 0: all.

    Returns:
        Metrics by name; of segmentation also `iou`, by class.

    Raises:
        UseError: no such network, or pictures that do not fit it.
    """
    views: dict[str, Any] = {"flips": flips, "scales": tuple(scales), "limit": limit}
    if val is None:
        if not isinstance(network, RunResult | str | os.PathLike):
            raise UseError("val is missing: pairs of pictures and labels to evaluate on")
        if Path(folder := _folder(network)).is_file():
            raise UseError(f"val is missing: pairs of pictures and labels to evaluate {folder} on")
        run = runs.find(folder)
        space = str(run.info().get("space"))
        restored = open_trained(eval_command.parser(space), {"run": str(run.folder), "space": space})
        task = tasks.get(restored.config.data.task, restored.config)
        context = tasks.EvaluationContext.from_config(restored.arithmetic, restored.config)
        return task.record(task.evaluate(restored.model, context, **views))
    source = network.folder if isinstance(network, RunResult) else network
    predictor = source if isinstance(source, Predictor) else open_predictor(source, classes=classes)
    description = predictor.description
    if description.output != "classes":
        raise UseError(f"{predictor.source}: a network of task '{description.task}', not of classes")
    flags = {**_data(val, val, description.classes), "ignore_index": description.ignore_index}
    if description.label_map is not None:
        flags["label_map"] = description.label_map.text()
    config = eval_command.parser().resolve({**flags, "crop_size": description.input_size})
    task = tasks.get(config.data.task, config)
    task.check()
    context = tasks.EvaluationContext(arithmetic=predictor.arithmetic)
    return task.record(task.evaluate(predictor.network, context, **views))


def _data(train: Sequence[Any] | None, val: Sequence[Any] | None, classes: Sequence[str] | None) -> dict[str, Any]:
    """Flags that name given pictures as data; none where there are none."""
    if train is None and val is None:
        if classes is not None:
            raise UseError("classes: are of given pictures, train and val; of files class_names names a file of names")
        return {}
    if train is None or val is None or classes is None:
        raise UseError("train, val and classes go together: pairs of pictures and labels, and the classes' names")
    code = given_task(train, val, classes)
    name = f"{GIVEN}:{code.__name__}"
    trust(name, code)
    return {"task": name, "data_root": WHERE, "n_class": len(classes), "n_worker": 0}


def _trained(
    command: ModuleType,
    find: Callable[[Parser], families.TrainingFamily[Any]],
    given: Mapping[str, Any],
    callbacks: Sequence[Callback] | Callback,
) -> RunResult:
    """Train by a command's driver."""
    given = {name: _plain(value) for name, value in given.items()}
    if callable(code := given.get("augment")):
        given["augment"] = f"{GIVEN}:augment"
        trust(given["augment"], code)
    if callable(callbacks):
        callbacks = (callbacks,)
    argv = spelled(given)
    contexts: list[Context] = []
    with trusting(argv):
        parser, _ = command.read(argv)
        families.train(find(parser), parser, argv, callbacks, contexts.append)
    if not contexts:  # a dry run
        raise UseError("dry_run: is of the command line")
    context = contexts[0]
    result = context.run.info().get("result")
    return RunResult(context.run.folder, result if isinstance(result, Mapping) else {})


def _space(parser: Parser) -> Any:
    """The space that a parser is of."""
    return spaces.get(parser.get_default("space"))


def _plain(value: Any) -> Any:
    """A flag's value as a command line can say it."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return list(value) if isinstance(value, tuple) else value


def _folder(run: RunResult | str | os.PathLike[str]) -> Path:
    return run.folder if isinstance(run, RunResult) else Path(run)
