"""Cost report of a pruned network's evaluation, and its predictions file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sparsemask import spaces
from sparsemask.costs import count_parameters, multiply_adds
from sparsemask.families import Restored
from sparsemask.spaces.group_sparsity import records
from sparsemask.spaces.group_sparsity.fast import compare_times
from sparsemask.tables import format_count, table
from sparsemask.tasks.classification.task import ClassificationTask
from sparsemask.timing import NOISE

if TYPE_CHECKING:
    from sparsemask.retrain.group_sparsity import GroupEvaluationSection


def measured(restored: Restored, task: ClassificationTask) -> list[dict]:
    """Measure the costs of a network.

    Args:
        restored: the network; without a mask (plain, or a published compressed file) no plain network is compared.
        task: gives the shape of inputs.

    Returns:
        Entries of run.json for every batch size (at least one): counts, and times unless --rounds is 0.
    """
    timing, model, where, mask = restored.config.family, restored.model, restored.arithmetic, restored.mask
    space = spaces.get("hinge")
    if mask is not None:
        reduction = space.structure(mask.config).reduction
        counted, recipe = records.entries(reduction, mask.kept, mask.merged), mask.config
    else:
        counted = {"parameters": count_parameters(model), "multiply_adds_true": multiply_adds(model, task.input_shape)}
        recipe = space.config({}, task.input_shape[1:])
    rows = []
    for batch in timing.batch if timing.rounds else timing.batch[:1]:
        row = dict(counted)
        if timing.rounds and mask is not None:
            row |= records.times(model, recipe, batch, where.device, timing.compiled, timing.rounds)
        elif timing.rounds:
            call = {"network": model}
            time = compare_times(call, recipe["input_shape"], batch, where.device, timing.compiled, timing.rounds)
            row |= {"milliseconds": time["network"], "timed": {"batch": batch, "compiled": timing.compiled}}
        rows.append(row)
    return rows


def costs_text(rows: list[Mapping], timing: GroupEvaluationSection) -> str:
    """Return a table of the network's and the plain one's costs, and how times were measured."""
    lines = []
    for name, title, form in (
        ("multiply_adds", "multiply-adds (published convention)", format_count),
        ("multiply_adds_true", "multiply-adds executed", format_count),
        ("parameters", "parameters", format_count),
    ):
        if name in rows[0]:
            lines.append(_line(title, rows[0][name], rows[0].get(f"{name}_dense"), form))
    for row in rows:
        if "milliseconds" in row:
            title = f"milliseconds, batch {row['timed']['batch']}"
            lines.append(_line(title, row["milliseconds"], row.get("milliseconds_dense"), "{:.3f}".format))
    names = {"cost": "cost", "value": "network", "plain": "plain", "share": "share", "gain": "gain"}
    footer = ""
    if timing.rounds:
        form = "compiled" if timing.compiled else "eager"
        footer = (
            f"\n(medians of {timing.rounds} in turn, {form}, batch norms folded, pairs merged where that is faster, "
            f"{torch.get_num_threads()} thread(s))"
        )
    return "\n" + table(lines, names) + footer


def slower_note(rows: Sequence[Mapping]) -> str | None:
    """Return a line with advice if the network is slower than the plain one by more than the error of measuring.

    Args:
        rows: as :func:`measured` returns them.
    """
    timed = [row for row in rows if row.get("milliseconds_dense")]
    slow = [row for row in timed if row["milliseconds"] > (1 + NOISE) * row["milliseconds_dense"]]
    if not slow:
        return None
    ratios = ", ".join(
        f"{row['milliseconds'] / row['milliseconds_dense']:.0%} of its time at batch {row['timed']['batch']}"
        for row in slow
    )
    how = f"--by milliseconds --merge auto --batch {slow[0]['timed']['batch']}"
    how += " --compiled" if slow[0]["timed"]["compiled"] else ""
    return (
        f"note: slower than the plain network here ({ratios}): fewer multiply-adds are not less time; prune with "
        f"{how}, which measures, or keep the plain network"
    )


def _line(title: str, value: float, plain: float | None, form) -> dict:
    line = {"cost": title, "value": form(value)}
    if plain:
        line |= {"plain": form(plain), "share": f"{value / plain:.1%}", "gain": f"{plain / value:.2f}"}
    return line


def write_predictions(task: ClassificationTask, predictions: Mapping[int, torch.Tensor], out: str) -> Path:
    """Write the predictions of every image into a folder; returns the file's path."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "predictions.csv"
    task.save(path, predictions)
    return path
