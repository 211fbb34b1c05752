"""Run records of this family: kept fractions, costs, drawings of the masks."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from sparsemask import spaces
from sparsemask.config import RunConfig
from sparsemask.costs import count_parameters
from sparsemask.devices import Arithmetic
from sparsemask.engine import Method, data, distributed
from sparsemask.errors import UseError
from sparsemask.spaces.protocols import HasFastForm
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork
from sparsemask.spaces.sparse_conv.masked_space import MaskedSpace
from sparsemask.spaces.sparse_conv.masking import hard_masks, mean_kept
from sparsemask.spaces.sparse_conv.measuring import COLUMNS, Watch
from sparsemask.spaces.sparse_conv.planning import Planner
from sparsemask.tasks import Task
from sparsemask.training_setup import Context

_MEASURED = 8  # validation inputs measured at the end of a run
_ROUNDS = 3


def evaluate_kept(model: nn.Module, task: Task, arithmetic: Arithmetic, config: RunConfig) -> dict[str, float]:
    """Evaluate a network with masks.

    Args:
        model: in any mode.
        task: its data and metrics.
        arithmetic: device and precision.
        config: of the run.

    Returns:
        The task's metrics, and `kept`, the mean kept fraction of the hard masks.
    """
    fractions = []
    hook = model.register_forward_hook(lambda module, *_: fractions.append(float(mean_kept(module).detach())))
    try:
        metrics = Method().evaluate(model, task, arithmetic, config)
    finally:
        hook.remove()
    sums = torch.tensor([sum(fractions), len(fractions)], dtype=torch.float64, device=arithmetic.device)
    total, count = distributed.total(sums).tolist()
    return {**metrics, "kept": total / max(count, 1)}


def entries(model: nn.Module, watch: Watch, measured_on: str) -> dict:
    """Entries of run.json: means over the inputs that a watch has measured.

    Args:
        model: the network.
        watch: after its calls.
        measured_on: description of the inputs.
    """
    means = dict(zip(COLUMNS, watch.table().mean(0).tolist(), strict=True))
    if watch.disagreement:
        distributed.warn(watch.disagreement)
        means |= {"ms": None, "dense_ms": None}
    channels = hard_masks(model)
    return {
        "kept_fraction": means["kept"],
        "masks": {
            name: {
                **module_metrics,
                "dense_channels": channels[name].sum(1).tolist(),
                "channels": int(channels[name].shape[1]),
            }
            for name, module_metrics in watch.by_module().items()
        },
        "measured_on": measured_on,
        "parameters": count_parameters(model),
        "multiply_adds": round(means["executed"]),
        "multiply_adds_dense": round(means["dense"]),
        "milliseconds": means["ms"],
        "milliseconds_dense": means["dense_ms"],
        "timed": {"device": str(watch.arithmetic.device), "threads": torch.get_num_threads()},
    }


def conclude(context: Context, model: nn.Module, weights: Path | None = None) -> dict:
    """Measure the finished network on validation inputs, draw its masks and return the entries of run.json.

    Args:
        context: of the run.
        model: the network.
        weights: where its weights will lie; how it is computed fastest is then found and kept beside them, and entry
            `plan` says it in lines.
    """
    config, run, task = context.config, context.run, context.task
    space = spaces.get(config.network.space)
    count = min(_MEASURED, config.training.eval_limit or _MEASURED, len(task.eval_data))
    planner = None if weights is None or isinstance(space, HasFastForm) else Planner(space, model, weights)
    watch = Watch(space, model.eval(), context.arithmetic, _ROUNDS, alone=True, planner=planner)
    for index in range(count):  # not by task.evaluate: only one process is here
        with context.arithmetic.context():
            watch(_inputs(task, index, context.arithmetic))
    notes = entries(model, watch, f"{task.measured_on()}, {count} {task.items}")
    if planner is not None:
        planner.save()
        notes["plan"] = planner.lines()
    run.note(**notes)
    context.draw_training(model)
    draw(space, model, task, context.arithmetic, run.pictures / "masks.png")
    return notes


def draw(space: MaskedSpace, model: MaskedNetwork, task: Task, arithmetic: Arithmetic, path) -> None:
    """Draw the masks of the validation item with the largest variance of kept locations, summed over modules.

    Modules without data masks (`mask_names`) are left out; nothing is drawn if no module has one.

    Args:
        space: of the network.
        model: in evaluation mode.
        task: its validation data.
        arithmetic: device and precision.
        path: the image file.

    Raises:
        UseError: no validation items.
    """
    names = model.mask_names
    chosen = [n for n, name in enumerate(names) if name] if names is not None else None
    if chosen == []:
        return
    best = None
    for index in range(min(len(task.eval_data), _MEASURED)):
        inputs = _inputs(task, index, arithmetic)
        with torch.no_grad(), arithmetic.context():
            model(inputs)
        masks = model.masks if chosen is None else [model.masks[n] for n in chosen]
        keep_ratios = torch.stack([mask.float().mean() for mask in masks])
        spread = float((keep_ratios * (1 - keep_ratios)).sum())
        if best is None or spread > best[0]:
            masks = [mask[0, 0].cpu().numpy() for mask in masks]
            best = spread, task.eval_data.name(index), inputs, masks
    if best is None:
        raise UseError(f"no validation {task.items}")
    _, name, inputs, masks = best
    names = None if chosen is None else [names[n] for n in chosen]
    space.draw_masks(inputs.to("cpu", torch.float32), masks, path, f"Where each module computes: {name}", names)


def _inputs(task: Task, index: int, arithmetic: Arithmetic):
    """A batch of one."""
    inputs, _ = data.collate(task.eval_data, [task.eval_data[index]])
    return inputs.to(arithmetic.device, arithmetic.parameters)
