"""Compare the dense, masked and skipping form of a specialised network: metrics, multiply-adds, milliseconds."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import nn

from sparsemask import spaces
from sparsemask.engine import data
from sparsemask.inference import optimize_for_inference
from sparsemask.ops.layout import to_channels_last
from sparsemask.spaces.protocols import HasFastForm, HasKernelForm, HasUnmaskedForm
from sparsemask.spaces.sparse_conv.measuring import COLUMNS, Watch, relative_difference, tolerance
from sparsemask.spaces.sparse_conv.planning import SAVED
from sparsemask.sparse import backend, repeatable
from sparsemask.tables import format_count, table
from sparsemask.tasks import EvaluationContext
from sparsemask.timing import compare
from sparsemask.training_setup import Context

_TIMED = 4  # validation items
_EQUAL = (("dense", "kernels"), ("masked", "sparse"))
_SHARE, _LEAST = 0.02, 0.005  # relative and absolute change of a metric that rounding may cause


def compare_forms(context: Context, model: nn.Module) -> tuple[str, list[dict], list[str]]:
    """Evaluate and time the forms of a network: everything kept, masks that multiply, masks that skip.

    The form that keeps everything is timed by torch's operators ("dense") and, if possible, by the skipping kernels
    ("kernels"), to separate the kernels' gain from the masks'; with --compiled also compiled for the first item's size.
    Metrics and mean multiply-adds are over the items within --eval_limit, times are medians over the first few.

    Args:
        context: of the run.
        model: the network.

    Returns:
        The table as text, its rows, and a line for each two forms that differ and must be equal.
    """
    config, where, task = context.config, context.arithmetic, context.task
    space = spaces.get(config.network.space)
    model = model.eval()
    watch = Watch(space, model, where, alone=True)

    def quality(form: Callable) -> dict[str, float]:
        evaluation = EvaluationContext.from_config(where, config)
        return task.metrics(task.evaluate(form, evaluation, limit=config.training.eval_limit, quick=True))

    sparse = quality(watch)
    means = dict(zip(COLUMNS, watch.table().mean(0).tolist(), strict=True))
    dense = space.dense_form(model)
    forms: dict[str, tuple] = {"dense": (dense, means["dense"])}
    if config.family.compiled and config.family.rounds and isinstance(space, HasUnmaskedForm):
        forms["compiled"] = (_compiled(space.unmasked(model), task, where), means["dense"])
    if isinstance(space, HasKernelForm):
        forms["kernels"] = (space.kernel_form(model), means["dense"])
    if isinstance(space, HasFastForm):  # else the network itself skips, and multiplies nowhere
        forms["masked"] = (model, means["dense"] + _branches(model))
    forms["sparse"] = (watch.form, means["executed"])
    rows = []
    for name, (form, executed) in forms.items():
        form = form.network if name == "compiled" else form  # items of other sizes need no compiling
        with repeatable():
            metrics = sparse if name == "sparse" else quality(form)
        row = {"form": name, **{k: float(v) for k, v in metrics.items()}, "multiply_adds": round(executed)}
        rows.append(row)
    calls = {name: form for name, (form, _) in forms.items()}
    wrong = _differences(calls if "masked" in calls else {**calls, "masked": _by_reference(model)}, rows, task, where)
    times = {} if wrong else _times(calls, task, where, config.family.rounds)
    rows = [row | ({"ms": times[row["form"]]} if times else {}) for row in rows]
    columns = {
        "form": "form",
        **{name: (name, ".4f") for name in sparse},
        "multiply_adds": ("multiply-adds", format_count),
    }
    lines = [table(rows, columns | ({"ms": ("ms", ".2f")} if times else {}))]
    gain = f"multiply-adds {means['dense'] / means['executed']:.2f} times fewer"
    if times:
        gain += f", {times['dense'] / times['sparse']:.2f} times as fast"
        labels = {"kernels": "the same kernels with everything kept", "compiled": "dense, compiled"}
        comparisons = [f"{times[n] / times['sparse']:.2f} times as {what}" for n, what in labels.items() if n in times]
        gain += f" ({', '.join(comparisons)})" if comparisons else ""
    count = len(watch.rows)
    if wrong:
        return "\n".join([*lines, *(f"{line}; no speed is claimed" for line in wrong)]), rows, wrong
    lines.append(
        f"{gain} ({task.measured_on()}, {count} {task.items}, {where.device}, {torch.get_num_threads()} thread(s))"
    )
    if isinstance(space, HasFastForm) and times and times["sparse"] * SAVED > times["dense"]:
        kept = f"masks keep {means['kept']:.2f}"  # of other spaces the plan says it
        lines.append(f"{kept} but save no time on these {task.items} here: the dense form is as fast")
    return "\n".join(lines), rows, wrong


def _by_reference(model: nn.Module):
    """The network on the reference backend: everything convolved, then multiplied by the masks."""

    def call(inputs):
        with backend("reference"):
            return model(inputs)

    return call


def _differences(forms: dict, rows: list[dict], task, where) -> list[str]:
    """A line for each two forms that must be equal and differ, in outputs or metrics."""
    metrics = {row["form"]: {k: v for k, v in row.items() if k not in ("form", "multiply_adds")} for row in rows}
    messages = []
    for first, second in _EQUAL:
        if first not in forms or second not in forms:
            continue
        apart = _apart(forms[first], forms[second], task, where)
        a, b = metrics.get(first, {}), metrics.get(second, {})
        unlike = [name for name in a if name in b and differs(a[name], b[name])]
        if unlike:
            values = ", ".join(f"{name} {a[name]:.4f} and {b[name]:.4f}" for name in unlike)
            messages.append(f"'{first}' and '{second}' must be equal and are not: {values}")
        elif not apart <= tolerance(where):
            messages.append(
                f"'{first}' and '{second}' must be equal and are not: outputs differ by {apart:.1%} of their size"
            )
    return messages


def differs(first: float, second: float) -> bool:
    """Whether two metrics differ by more than rounding may cause, which can flip a few masks and labels."""
    if not (math.isfinite(first) and math.isfinite(second)):
        return not (first == second or math.isnan(first) and math.isnan(second))
    return not abs(first - second) <= max(_LEAST, _SHARE * max(abs(first), abs(second)))


@torch.no_grad()
def _apart(first, second, task, where) -> float:
    """Relative difference of two forms' outputs, the largest over the first validation items."""
    worst = 0.0
    for index in range(min(_TIMED, len(task.eval_data))):
        inputs, _ = data.collate(task.eval_data, [task.eval_data[index]])
        inputs = inputs.to(where.device, where.parameters)
        with where.context():
            apart = relative_difference(first(inputs), second(inputs))
        worst = apart if math.isnan(apart) else max(worst, apart)
        if math.isnan(worst):
            return worst
    return worst


def _compiled(network: nn.Module, task, where):
    """A network's compiled form, for the first validation item's size."""
    inputs, _ = data.collate(task.eval_data, [task.eval_data[0]])
    return optimize_for_inference(network, inputs.to(where.device, where.parameters), compiled=True)


def _branches(model: nn.Module) -> float:
    """Multiply-adds of the mask branches in the last forward pass."""
    return sum(module.overhead() for module in model.masked.values() if module.seen is not None)


@torch.no_grad()
def _times(forms: dict, task, where, rounds: int) -> dict[str, float]:
    """Median milliseconds of each form over the first validation items; empty without timing."""
    if not rounds:
        return {}
    sums = dict.fromkeys(forms, 0.0)
    count = min(_TIMED, len(task.eval_data))
    for index in range(count):
        inputs, _ = data.collate(task.eval_data, [task.eval_data[index]])
        inputs = inputs.to(where.device, where.parameters)
        if isinstance(inputs, torch.Tensor) and inputs.ndim == 4:
            inputs = to_channels_last(inputs)
        with where.context():
            calls = {name: functools.partial(form, inputs) for name, form in forms.items()}
            milliseconds = compare(calls, rounds, warmup=4, device=where.device)
        for name in forms:
            sums[name] += milliseconds[name] / count
    return sums
