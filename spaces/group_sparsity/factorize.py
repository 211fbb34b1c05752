"""Replace convolutions by factorised pairs (Hinge, Li et al., CVPR 2020, section 3)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.spaces.group_sparsity.groups import GroupSet, axis
from sparsemask.spaces.group_sparsity.matrices import Pair


class DoubleReLU(nn.Module):
    """p · relu(x) + q · relu(-x) with learnable p and q; a ReLU at first (Li et al., CVPR 2020, section 4)."""

    def __init__(self) -> None:
        super().__init__()
        self.slope_p = nn.Parameter(torch.tensor(1.0))
        self.slope_n = nn.Parameter(torch.tensor(0.0))

    def forward(self, x: Tensor) -> Tensor:
        # relu(-x) = relu(x) - x spares a second rectified map
        return (self.slope_p + self.slope_n) * torch.relu(x) - self.slope_n * x


def hinge(network: nn.Module, plan, init: str = "svd2", generator: torch.Generator | None = None, **settings: float):
    """Insert the plan's pairs and double ReLUs into a network, in place.

    Args:
        network: the plain network.
        plan: which convolutions are factorised, and the groups.
        init: initialisation of pairs, one of `matrices.INITS`; those in `matrices.EXACT` preserve the function.
        generator: of random initialisations.
        settings: further arguments of `matrices.factorise`.

    Returns:
        The network; its `sets` are the groups, recounted if the initialisation changed a rank.

    Raises:
        UseError: the network lacks a convolution or ReLU of the plan.
    """
    for name in plan.splits:
        network.set_submodule(name, Pair.of(_convolution(network, name), init, generator, **settings))
    for name in plan.double_relu:
        relu = network.get_submodule(name)
        if not isinstance(relu, nn.ReLU):
            raise UseError(f"{name}: is {type(relu).__name__}, expected a ReLU to be made a double one")
        network.set_submodule(name, DoubleReLU().train(relu.training))
    network.sets = [counted(network, s) for s in plan.sets]
    return network


def _convolution(network: nn.Module, name: str) -> nn.Conv2d:
    try:
        module = network.get_submodule(name)
    except AttributeError:
        raise UseError(f"{type(network).__name__} has no module '{name}' to put a matrix at") from None
    if not isinstance(module, nn.Conv2d) or module.groups != 1:
        raise UseError(f"{name}: is {module}, expected a convolution without groups to put a matrix at")
    return module


def counted(network: nn.Module, s: GroupSet) -> GroupSet:
    """The same set with the number of groups that the network's shapes give."""
    member = s.members[0]
    if member.index is not None:
        return s
    module = network.get_submodule(member.module)
    return dataclasses.replace(s, count=module.weight.shape[axis(module, member.dim)] // s.size)
