"""Table of an evaluation of a network with fine-grained masks: metrics and measured costs."""

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
    """Return a row of costs for each input, and a last one of means.

    Args:
        costs: as :meth:`sparsemask.spaces.sparse_conv.measuring.Watch.table` returns it.
    """
    rows = []
    for values in [*costs.tolist(), costs.mean(0).tolist()]:
        row = dict(zip(COLUMNS, values, strict=True))
        rows.append({**row, "gain": row["dense_ms"] / row["ms"], "share": row["executed"] / row["dense"]})
    if len(costs):
        rows[-1]["gain"] = math.exp(float((costs[:, 4] / costs[:, 3]).log().mean()))  # of ratios the geometric mean
    return rows


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
    """Return the evaluation's report: metrics and costs (by input, if scores are), kept fractions by module, means.

    Args:
        space: of the network.
        model: the network.
        task: that it was evaluated on.
        scores: of the task.
        costs: float64 (inputs, 5), see :func:`cost_rows`.
        by_module: kept locations and fraction by module.
        where: device and precision.
        config: of the command.
    """
    input_costs = cost_rows(costs)
    mean = input_costs[-1]
    timed = {k: v for k, v in _COSTS.items() if config.family.rounds or k not in _TIMES}
    by_sample = isinstance(scores, ScoresBySample)
    if by_sample:
        rows = [{**quality, **cost} for quality, cost in zip(scores.rows(), input_costs, strict=True)]
        lines = [table(rows, {**scores.columns, **timed})]
    else:
        lines = [
            task.report(scores),
            "",
            table([{"on": f"mean of {task.items}", **mean}], {"on": "on", **timed}),
        ]
    lines += ["", module_table(hard_masks(model), by_module), ""]
    summary = f"{scores.summary()}  " if by_sample else ""
    summary += f"kept {mean['kept']:.3f}  multiply-adds {100 * mean['share']:.1f} % of dense"
    if config.family.rounds:
        summary += f"  {mean['gain']:.2f} times as fast as dense"
    lines.append(summary)
    if row := space.published_row(model, mean["share"]):
        lines.append(row)
    device = str(where.device) if where.device.type == "cpu" else torch.cuda.get_device_name(where.device)
    lines.append(
        f"({task.measured_on()}, {len(costs)} {task.items}; {scores.protocol}; ms: medians of {config.family.rounds} "
        f"in turn, {device}, {torch.get_num_threads()} thread(s), {config.device.type}, "
        f"backend {config.family.backend})"
    )
    return "\n".join(lines)


def record(task: Task, scores: Scores, costs: Tensor, by_module: dict) -> dict:
    """Return an evaluation's entry of run.json; arguments as :func:`evaluation_text`."""
    *by_input, mean = ({k: _known(v) for k, v in row.items()} for row in cost_rows(costs))
    entries = task.record(scores)
    if "each" in entries:
        entries["each"] = [{**a, **b} for a, b in zip(entries["each"], by_input, strict=True)]
    return {**entries, **mean, "pictures": len(costs), "modules": by_module}


def _known(value):
    """None for NaN and infinity, which JSON lacks."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
