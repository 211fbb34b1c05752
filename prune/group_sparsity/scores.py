"""Scores of residual blocks by the training loss without them, in place of their norms."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from sparsemask.config import RunConfig
from sparsemask.devices import Arithmetic
from sparsemask.errors import UseError, say
from sparsemask.prune.group_sparsity.curve import training_batches
from sparsemask.spaces.group_sparsity.networks.layers import ResidualBlock
from sparsemask.spaces.group_sparsity.reduction import Hinged
from sparsemask.spaces.group_sparsity.threshold import least_kept
from sparsemask.tasks import Task

SCORES = ("norms", "loss")


def elimination_order(hinged: Hinged, task: Task, config: RunConfig, where: Arithmetic) -> dict[str, np.ndarray]:
    """Score residual blocks by the order in which they are left out: each time the one without which the loss is least.

    The loss is that of `--score_batches` training batches, with batch norms' statistics of each batch, as after an
    adaptation; r of n blocks are chosen by about r·n/2 passes over them. The blocks of `--remain` are not told apart.

    Args:
        hinged: the searched network.
        task: its data and loss.
        config: of the command.
        where: device and precision.

    Returns:
        By set name, (count,): 1 for the block that goes first, ...

    Raises:
        UseError: other groups than blocks.
    """
    if any(not s.branches for s in hinged.reduction.sets):
        raise UseError("--scores loss: scores residual blocks alone; make the search with --variant blocks")
    network = copy.deepcopy(hinged.network).to(where.device, where.parameters).train()
    batches = [
        (images.to(where.device, where.parameters), target.to(where.device))
        for images, target in training_batches(task, config, config.family.score_batches)
    ]
    count = sum(task.count(target) for _, target in batches)
    order = {}
    for s in hinged.reduction.sets:
        groups = {branch.block: group for group, branch in enumerate(s.branches)}
        scores = np.full(s.count, s.count, dtype=np.float64)
        losses = []
        for place in range(1, s.count - least_kept(s.count, config.family.remain) + 1):
            without = _losses_without(network, list(groups), task, batches)
            name = min(without, key=without.__getitem__)
            network.set_submodule(name, _block(network, name).without_branch())
            scores[groups.pop(name)] = place
            losses.append(without[name] / count)
        order[s.name] = scores
        say(f"{s.name} left out one after another: training loss {', '.join(f'{loss:.3f}' for loss in losses)}")
    return order


class _Given(nn.Module):
    """Stands for a block whose output is known."""

    def __init__(self, output: Tensor):
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Tensor:
        return self.output


@torch.no_grad()
def _losses_without(
    network: nn.Module, names: Sequence[str], task: Task, batches: Sequence[tuple[Tensor, Tensor]]
) -> dict[str, float]:
    """The summed loss without each of some blocks, which follow each other; what is before it is computed once."""
    losses = dict.fromkeys(names, 0.0)
    blocks = {name: _block(network, name) for name in names}
    for images, target in batches:
        outputs = _outputs(network, blocks, images)
        for name, block in blocks.items():
            network.set_submodule(name, block.without_branch())
            losses[name] += float(task.loss(network(images), target))
            network.set_submodule(name, _Given(outputs.pop(name)))
        for name, block in blocks.items():
            network.set_submodule(name, block)
    return losses


def _outputs(network: nn.Module, blocks: Mapping[str, nn.Module], images: Tensor) -> dict[str, Tensor]:
    """The outputs of some blocks, by name."""
    outputs: dict[str, Tensor] = {}

    def keep(name: str, module: nn.Module, args: tuple, output: Tensor) -> None:
        outputs[name] = output

    hooks = [block.register_forward_hook(functools.partial(keep, name)) for name, block in blocks.items()]
    try:
        network(images)
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


def _block(network: nn.Module, name: str) -> ResidualBlock:
    block = network.get_submodule(name)
    assert isinstance(block, ResidualBlock)  # the rules name no others
    return block
