"""A smaller network that does what the masked one does.

The published code drops zero channels and with them the constants that batch norm makes of zero (Li et al. 2020,
arXiv 2003.08935, section 3.4 has none of this); here these are folded into what reads them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from sparsemask.errors import choose
from sparsemask.spaces.group_sparsity import constants
from sparsemask.spaces.group_sparsity.border import add_bias, add_border
from sparsemask.spaces.group_sparsity.channels import ChannelGraph
from sparsemask.spaces.group_sparsity.groups import GroupSet
from sparsemask.spaces.group_sparsity.removal import Kept, Removal

FOLDS = ("exact", "interior", "none")


@torch.no_grad()
def compress(
    network: nn.Module, graph: ChannelGraph, sets: Sequence[GroupSet] | Removal, kept: Kept, fold: str = "exact"
) -> nn.Module:
    """The network without its dropped groups, as a new module; the given one is left as it is.

    Args:
        network: the one that `graph` was traced from, with its pairs, or one of the same structure and shapes.
        sets: the groups, or a :class:`Removal` made of them.
        kept: by set name, bool (count,); sets that are not named keep everything. Never does a layer lose all of its
            channels: one, zeroed, stays.
        fold: what happens to the constants that dropped channels leave after biases, batch norms and activations.
            "exact": the result equals the network whose dropped groups (and their biases) are zero, at any input
            size; under zero padding a convolution gets a small `border`
            (:mod:`sparsemask.spaces.group_sparsity.border`). A channel whose remains have no such place (they differ
            from position to position, say) stays, zeroed.
            "interior": constants go into biases and running means alone, so that outputs differ near the border.
            "none": constants are forgotten, as in the published code; for networks that are trained on.

    The result's `removed` are the numbers of the elements that went.

    Raises UseError for masks of another network. RuntimeError, which would be a fault of ours, where the result
    does not reproduce the masked network on a random input ("exact").
    """
    choose(fold, FOLDS, "fold")
    removal = sets if isinstance(sets, Removal) else Removal(graph, sets)
    small = removal.zero_(copy.deepcopy(network), kept)
    modes = {name: module.training for name, module in small.named_modules()}
    small.eval()
    gone = removal.gone(kept)
    plan, example, wanted = constants.Plan(), None, None
    while fold != "none" and gone.any():
        found, example, wanted = constants.read(small, graph, gone)
        plan = constants.plan(small, graph, gone, found, fold)
        if not plan.refused:
            break
        for elements in plan.refused:
            gone[elements] = False
    _add(small, graph, plan, gone)
    if example is not None and fold == "exact":
        _check(small(example), wanted)
    for name, module in small.named_modules():
        module.training = modes[name]
    if "sets" in vars(small):
        small.sets = []  # they counted the channels from before
    small.removed = np.flatnonzero(gone)
    return small


def _add(network: nn.Module, graph: ChannelGraph, plan: constants.Plan, gone) -> None:
    """The removal, and the constants of what goes into what remains."""
    for name, amount in plan.means.items():
        network.get_buffer(name).sub_(amount.to(network.get_buffer(name)))
    graph.remove(network, gone)
    for name, amount in plan.biases.items():
        module = network.get_submodule(name)
        add_bias(module, _left(graph, name, amount, gone, 0).to(module.weight))
    for name, border in plan.borders.items():
        module = network.get_submodule(name)
        add_border(module, _left(graph, name, border, gone, 1 if graph.node(name).args[6] else 0).to(module.weight))


def _left(graph: ChannelGraph, name: str, value: torch.Tensor, gone, dim: int) -> torch.Tensor:
    left = torch.from_numpy(~gone[graph.elements(name, 0)]).to(value.device)
    return value.transpose(0, dim)[left].transpose(0, dim).contiguous()


def _check(found, wanted) -> None:
    for a, b in zip(*(constants.leaves(x) for x in (found, wanted)), strict=True):
        if a.shape != b.shape or (a - b).abs().max() > 1e-3 * (1 + b.abs().max()):
            raise RuntimeError("the compressed network does not do what the masked one does")
