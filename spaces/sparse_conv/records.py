"""What a run of this family notes: kept fractions, costs, pictures of the masks."""

from __future__ import annotations

import torch
from torch import nn

from sparsemask import run_summary, spaces, training_setup
from sparsemask.config import RunConfig
from sparsemask.costs import count_parameters
from sparsemask.devices import Arithmetic
from sparsemask.engine import Method, data, distributed
from sparsemask.errors import UseError
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork
from sparsemask.spaces.sparse_conv.masked_space import MaskedSpace
from sparsemask.spaces.sparse_conv.masking import hard_masks, mean_kept
from sparsemask.spaces.sparse_conv.measuring import COLUMNS, Watch
from sparsemask.tasks import Task
from sparsemask.training_setup import Context

_MEASURED = 8  # validation pictures measured at the end of a run
_ROUNDS = 3


def evaluate_kept(model: nn.Module, task: Task, arithmetic: Arithmetic, config: RunConfig) -> dict[str, float]:
    """The task's metrics of a network with masks, and `kept`, the mean kept fraction of its hard masks."""
    found = []
    hook = model.register_forward_hook(lambda module, *_: found.append(float(mean_kept(module).detach())))
    try:
        metrics = Method().evaluate(model, task, arithmetic, config)
    finally:
        hook.remove()
    sums = torch.tensor([sum(found), len(found)], dtype=torch.float64, device=arithmetic.device)
    total, count = distributed.total(sums).tolist()
    return {**metrics, "kept": total / max(count, 1)}


def entries(model: nn.Module, watch: Watch, measured_on: str) -> dict:
    """Entries of run.json: means over the pictures a watch has seen."""
    means = dict(zip(COLUMNS, watch.table().mean(0).tolist(), strict=True))
    if watch.disagreement:
        training_setup.warn(watch.disagreement)
        means |= {"ms": None, "dense_ms": None}
    channels = hard_masks(model)
    return {
        "kept_fraction": means["kept"],
        "masks": {
            name: {**shares, "dense_channels": channels[name].sum(1).tolist(), "channels": int(channels[name].shape[1])}
            for name, shares in watch.by_module().items()
        },
        "measured_on": measured_on,
        "parameters": count_parameters(model),
        "multiply_adds": round(means["executed"]),
        "multiply_adds_dense": round(means["dense"]),
        "milliseconds": means["ms"],
        "milliseconds_dense": means["dense_ms"],
        "timed": {"device": str(watch.arithmetic.device), "threads": torch.get_num_threads()},
    }


def conclude(context: Context, model: nn.Module) -> dict:
    """Measure the finished network on validation pictures, draw what there is to see; returns what is noted."""
    config, run, task = context.config, context.run, context.task
    space = spaces.get(config.network.space)
    count = min(_MEASURED, config.training.eval_limit or _MEASURED, len(task.eval_data))
    watch = Watch(space, model.eval(), context.arithmetic, _ROUNDS, alone=True)
    for index in range(count):  # not by task.evaluate: only one process is here
        with context.arithmetic.context():
            watch(_inputs(task, index, context.arithmetic))
    found = entries(model, watch, f"{task.measured_on()}, {count} {task.items}")
    run.note(**found)
    run_summary.draw_training(context, model)
    draw(space, model, task, context.arithmetic, run.pictures / "masks.png")
    return found


def draw(space: MaskedSpace, model: MaskedNetwork, task: Task, arithmetic: Arithmetic, path) -> None:
    """The masks of the validation item in which most is to tell: where modules differ most in what they keep.

    Of a network that has modules without data masks (`mask_names`) the others alone; nothing where there are none.
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
        shares = torch.stack([mask.float().mean() for mask in masks])
        spread = float((shares * (1 - shares)).sum())
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
