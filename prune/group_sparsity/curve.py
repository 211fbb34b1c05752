"""Quality of pruned networks before retraining, with adapted batch norms."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Mapping

import numpy as np
import torch

from sparsemask import spaces
from sparsemask.config import RunConfig
from sparsemask.devices import Arithmetic
from sparsemask.engine import data
from sparsemask.engine.method import reestimate
from sparsemask.masks.groups import GroupMask
from sparsemask.pictures.hinge import Tried
from sparsemask.prune.group_sparsity.budget import choose_groups
from sparsemask.spaces.group_sparsity.reduction import Hinged
from sparsemask.tables import table
from sparsemask.tasks import EvaluationContext, Task


def metrics(network: torch.nn.Module, task: Task, config: RunConfig, where: Arithmetic) -> dict[str, float]:
    """Evaluate a network on the task.

    Args:
        network: moved to the device.
        task: its data and metrics.
        config: of the command; `family.eval_limit` limits the inputs.
        where: device and precision.
    """
    network.to(where.device, where.parameters)
    context = EvaluationContext.from_config(where, config)
    return task.metrics(task.evaluate(network, context, limit=config.family.eval_limit, quick=True))


def training_batches(task: Task, config: RunConfig, count: int) -> Generator:
    """The first `count` training batches (images, target) of a run."""
    source, seed = task.train_data, config.training.seed
    sampler = data.step_sampler(source, config.training.batch_size, 0, count, seed)
    return data.plainly(data.training_loader(source, sampler, seed, 0))


def adapted(network: torch.nn.Module, task: Task, config: RunConfig, where: Arithmetic) -> dict[str, float]:
    """Evaluate as :func:`metrics`, after re-estimating batch norm statistics in place on --bn_reestimate batches."""
    network.to(where.device, where.parameters)
    if config.family.bn_reestimate:
        with contextlib.closing(training_batches(task, config, config.family.bn_reestimate)) as batches:
            reestimate(network, (images.to(where.device, where.parameters) for images, _ in batches))
    return metrics(network.eval(), task, config, where)


def follow(
    hinged: Hinged,
    recipe: Mapping,
    task: Task,
    config: RunConfig,
    where: Arithmetic,
    done: Mapping[float, dict],
    scores: Mapping[str, np.ndarray] | None = None,
) -> list[dict]:
    """Prune a hinged network to every ratio of --curve and evaluate each.

    Args:
        hinged: the searched network.
        recipe: its configuration.
        task: its data and metrics.
        config: of the command.
        where: device and precision.
        done: finished rows by target.
        scores: of the groups, as for :func:`choose_groups`.

    Returns:
        Rows of target, reached ratio ("share") and metrics, the largest target first.
    """
    rows = dict(done)
    for target in {*config.family.curve} - done.keys():
        choice = choose_groups(hinged, recipe, config.replace(target=target), where, scores)
        pruned = spaces.get(config.network.space).compressed(hinged, GroupMask(recipe, choice.kept, choice.merged))
        rows[target] = {"target": target, "share": choice.ratio, **adapted(pruned.network, task, config, where)}
    return [rows[target] for target in sorted(rows, reverse=True)]


def rows_text(rows: list[dict], primary: str) -> str:
    """Return the rows as a table."""
    columns = {
        "target": ("target", ".0%"),
        "share": ("reached", ".1%"),
        primary: (f"{primary} before retraining", ".4f"),
    }
    return table(rows, columns)


def points(rows: list[dict], primary: str, searched: float) -> list[Tried]:
    """Return the rows and the unpruned network as points for :func:`sparsemask.pictures.hinge.draw_tradeoff`."""
    pruned = [Tried(row["share"], row[primary], f"{row['target']:.0%}", "before retraining") for row in rows]
    return [Tried(1.0, searched, "searched", "baseline"), *pruned]
