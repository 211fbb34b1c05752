"""Quality and costs after each step of a recipe: every network in its fast form, timed in turn in one process."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from sparsemask import flags, spaces, tasks
from sparsemask.config import RunConfig
from sparsemask.costs import count_parameters, multiply_adds
from sparsemask.devices import Arithmetic
from sparsemask.inference import optimize_for_inference
from sparsemask.ops.layout import to_channels_last
from sparsemask.retrain import eval as evaluation
from sparsemask.retrain.trained import open_trained, read_flags
from sparsemask.spaces.protocols import HasFastForm
from sparsemask.sparse import repeatable
from sparsemask.tables import format_count, markdown_table, table
from sparsemask.timing import NOISE, compare

_PICTURES = 4
"""Validation pictures that are timed and counted; where masks skip, what is computed depends on them."""


@dataclass
class Opened:
    """A run's network as it is run: batch norms folded, the faster memory format, masks that skip, perhaps compiled."""

    config: RunConfig
    network: torch.nn.Module
    run: Callable[[torch.Tensor], torch.Tensor]
    """From images (1, C, H, W), contiguous."""
    plain: Callable[[torch.Tensor], torch.Tensor]
    """The same, not compiled: what is counted, and what images of any size are scored with."""
    where: Arithmetic
    task: tasks.Task
    compiled: bool = False
    """Whether what is run is compiled."""

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """The network's output."""
        with torch.no_grad():
            return self.plain(images)


def opened(folder: Path, compiled: bool = False) -> Opened:
    """The network of a run's folder. compiled: also try its compiled form, where no masks skip."""
    argv = ["--run", str(folder)]
    space = flags.space_of(argv)
    parser = evaluation.parser(space)
    restored = open_trained(parser, read_flags(parser, argv, space))
    config, network, arithmetic = restored.config, restored.model, restored.arithmetic
    task = tasks.get(config.data.task, config)
    example = task.eval_data[0][0][None].to(arithmetic.device, arithmetic.parameters)
    if isinstance(spaces.get(space), HasFastForm):
        form = spaces.get(space).fast_form(network)
        run = plain = lambda x: form(to_channels_last(x))
        return Opened(config, network, run, plain, arithmetic, task)
    run = plain = optimize_for_inference(network, example, compiled=False)
    if compiled:
        run = optimize_for_inference(network, example, compiled=None)
    return Opened(config, network, run, plain, arithmetic, task, run.compiled)


def costs(networks: Mapping[str, Opened], rounds: int) -> dict[str, dict[str, float]]:
    """{name: milliseconds, multiply_adds, parameters} on the same validation images, batch 1, timed in turn."""
    first = next(iter(networks.values()))
    source = first.task.eval_data
    count = min(_PICTURES, len(source))
    measured = {n: {"milliseconds": 0.0, "multiply_adds": 0.0} for n in networks}
    for index in range(count):
        image = source[index][0][None].to(first.where.device, first.where.parameters)
        times = compare(
            {n: functools.partial(network.run, image) for n, network in networks.items()}, rounds, 3, image.device
        )
        for name, network in networks.items():
            measured[name]["milliseconds"] += times[name] / count
            measured[name]["multiply_adds"] += multiply_adds(network, image) / count
    for name, network in networks.items():
        measured[name]["parameters"] = count_parameters(network.network)
    return measured


def quality(network: Opened, limit: int = 0) -> float:
    """The task's primary metric of the form that is run, over the validation images (the first `limit`)."""
    with repeatable():
        context = tasks.EvaluationContext.from_config(network.where, network.config)
        scores = network.task.evaluate(network, context, limit=limit, quick=True)
    return float(network.task.metrics(scores)[network.task.primary])


def with_gains(rows: list[dict], dense: Mapping) -> list[dict]:
    """The rows with their gains against the fully dense network, where they have costs."""
    for row in rows:
        if row.get("milliseconds"):
            row["faster"] = dense["milliseconds"] / row["milliseconds"]
            row["fewer"] = dense["multiply_adds"] / row["multiply_adds"]
    return rows


def slower(rows: list[dict]) -> list[str]:
    """A line for every network that takes longer than the one before it, by more than measuring errs."""
    timed = [row for row in rows if row.get("milliseconds")]
    return [
        f"note: '{b['step']}' takes {b['milliseconds'] / a['milliseconds']:.0%} of the time of '{a['step']}' here: "
        "fewer multiply-adds are not less time; keep the latter's run, or leave the step out"
        for a, b in zip(timed, timed[1:], strict=False)
        if b["milliseconds"] > (1 + NOISE) * a["milliseconds"] and a["step"] != "dense"
    ]


def text(rows: list[dict], primary: str, markdown: bool = False) -> str:
    """The rows as a table."""
    columns = {
        "step": "step",
        "quality": (primary, ".4f"),
        "multiply_adds": ("multiply-adds", format_count),
        "fewer": ("times fewer", ".2f"),
        "parameters": ("parameters", format_count),
        "milliseconds": ("ms", ".2f"),
        "faster": ("times faster", ".2f"),
        "seconds": ("taken s", ".0f"),
    }
    return (markdown_table if markdown else table)(rows, columns)
