"""The table an evaluation of a network with fine-grained masks prints: quality beside what it really cost."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparsemask.config import RunConfig
from sparsemask.devices import Arithmetic
from sparsemask.spaces.sparse_conv.masking import hard_masks
from sparsemask.spaces.sparse_conv.measuring import COLUMNS, module_table
from sparsemask.tables import format_count, table
from sparsemask.tasks import Scores, ScoresBySample, Task

_COSTS = {
    "kept": ("kept", ".3f"), "ms": ("ms", ".1f"), "dense_ms": ("dense ms", ".1f"), "gain": ("gain", ".2f"),
    "executed": ("multiply-adds", format_count), "dense": ("dense", format_count),
}  # fmt: skip
_TIMES = ("ms", "dense_ms", "gain")


def cost_rows(costs: Tensor) -> list[dict]:
    """A row of costs for each input the network was called with, and one of the means."""
    found = []
    for values in [*costs.tolist(), costs.mean(0).tolist()]:
        one = dict(zip(COLUMNS, values, strict=True))
        found.append({**one, "gain": one["dense_ms"] / one["ms"], "share": one["executed"] / one["dense"]})
    if len(costs):
        found[-1]["gain"] = math.exp(float((costs[:, 4] / costs[:, 3]).log().mean()))  # of ratios the geometric mean
    return found


def evaluation_text(
    space,
    model: nn.Module,
    task: Task,
    scores: Scores,
    costs: Tensor,
    by_module: dict,
    where: Arithmetic,
    config: RunConfig,
) -> str:
    """The task's table with the costs (by picture, where it scores picture by picture), what each module keeps, and
    the means."""
    found = cost_rows(costs)
    mean = found[-1]
    timed = {k: v for k, v in _COSTS.items() if config.family.rounds or k not in _TIMES}
    by_sample = isinstance(scores, ScoresBySample)
    if by_sample:
        rows = [{**quality, **cost} for quality, cost in zip(scores.rows(), found, strict=True)]
        lines = [table(rows, {**scores.columns, **timed})]
    else:
        lines = [
            task.report(scores),
            "",
            table([{"on": f"mean of {task.items}", **mean}], {"on": "on", **timed}),
        ]
    lines += ["", module_table(hard_masks(model), by_module), ""]
    said = f"{scores.summary()}  " if by_sample else ""
    said += f"kept {mean['kept']:.3f}  multiply-adds {100 * mean['share']:.1f} % of dense"
    if config.family.rounds:
        said += f"  {mean['gain']:.2f} times as fast as dense"
    lines.append(said)
    if row := space.published_row(model, mean["share"]):
        lines.append(row)
    device = str(where.device) if where.device.type == "cpu" else torch.cuda.get_device_name(where.device)
    lines.append(
        f"({task.measured_on()}, {len(costs)} {task.items}; {scores.protocol}; ms: medians of {config.family.rounds} "
        f"in turn, {device}, {torch.get_num_threads()} thread(s), {config.device.type}, "
        f"backend {config.family.backend})"
    )
    return "\n".join(lines)


def record(model: nn.Module, task: Task, scores: Scores, costs: Tensor, by_module: dict) -> dict:
    """What run.json keeps of an evaluation."""
    *each, mean = ({k: _known(v) for k, v in row.items()} for row in cost_rows(costs))
    kept = task.record(scores)
    if "each" in kept:
        kept["each"] = [{**a, **b} for a, b in zip(kept["each"], each, strict=True)]
    return {**kept, **mean, "pictures": len(costs), "modules": by_module}


def _known(value):
    """JSON knows neither NaN nor infinity."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
