"""Groups of weights that vanish together: what they are, how long they are, and how they shrink."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

PROJECTIONS = ("P1", "P2")


@dataclass(frozen=True)
class Member:
    """One side of a convolution's or linear layer's weight."""

    module: str
    """The layer's name in the network."""
    dim: int
    """0: output channels (columns of A), 1: input channels (rows of A), whichever way the weight is laid out."""
    index: tuple[int, ...] | None = None
    """The group of every channel, -1 for one in none; None: `size` channels a group, in order."""


@dataclass(frozen=True)
class GroupSet:
    """`count` groups; group g is all weights of its channels, in every member."""

    name: str
    projection: str
    """"P1" or "P2": which of the two penalties it belongs to."""
    members: tuple[Member, ...]
    count: int
    size: int = 1
    """Channels a group (where members have no `index`)."""

    def channels(self, member: Member, groups: Tensor) -> Tensor:
        """Which channels of a member (bool) the groups named by `groups` (bool, count) are."""
        return _spread(self, member, groups, torch.zeros((), dtype=torch.bool))


@lru_cache(maxsize=4096)
def _index(index: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(index, device=device)


@lru_cache(maxsize=4096)
def _positions(index: tuple[int, ...], count: int, device: torch.device) -> Tensor:
    """(count, most channels a group): where a group's channels are; the channels' number, where it has fewer."""
    lists: list[list[int]] = [[] for _ in range(count)]
    for position, group in enumerate(index):
        if group >= 0:
            lists[group].append(position)
    width = max(1, max(map(len, lists)))
    return torch.tensor([found + [len(index)] * (width - len(found)) for found in lists], device=device)


def _spread(s: GroupSet, member: Member, values: Tensor, other: Tensor) -> Tensor:
    """Values of groups (count,) -> of the member's channels; `other` for a channel of no group."""
    if member.index is None:
        return values if s.size == 1 else values.repeat_interleave(s.size)
    return torch.cat([values, other.to(values).reshape(1)])[_index(member.index, values.device)]


def axis(module: nn.Module, dim: int) -> int:
    """The weight's dimension along which a module's output (`dim` 0) or input (1) channels lie."""
    return 1 - dim if isinstance(module, _ConvTransposeNd) else dim


def _joint(network: nn.Module, s: GroupSet, tensors: Iterable[Tensor]) -> Tensor:
    found = []
    for member, tensor in zip(s.members, tensors, strict=True):
        along = axis(network.get_submodule(member.module), member.dim)
        others = [d for d in range(tensor.dim()) if d != along]
        each = torch.linalg.vector_norm(tensor, dim=others)
        if member.index is not None:
            padded = torch.cat([each, each.new_zeros(1)])
            each = torch.linalg.vector_norm(padded[_positions(member.index, s.count, each.device)], dim=1)
        elif s.size > 1:
            each = torch.linalg.vector_norm(each.view(s.count, s.size), dim=1)
        found.append(each)
    return found[0] if len(found) == 1 else torch.linalg.vector_norm(torch.stack(found), dim=0)


def weights(network: nn.Module, s: GroupSet) -> list[nn.Parameter]:
    """The members' weights, in order."""
    return [network.get_submodule(member.module).weight for member in s.members]


def norms(network: nn.Module, s: GroupSet) -> Tensor:
    """(count,) l2 norms of the groups, over all members jointly; differentiable (zero where a norm is zero)."""
    return _joint(network, s, weights(network, s))


def gradient_norms(network: nn.Module, s: GroupSet) -> Tensor:
    """(count,) l2 norms of the groups' gradients; a weight without one counts as zero."""
    return _joint(network, s, (torch.zeros_like(w) if w.grad is None else w.grad for w in weights(network, s)))


@torch.no_grad()
def scale_(network: nn.Module, s: GroupSet, factors: Tensor) -> None:
    """Multiply every group by its factor (count,), in place: parameters stay the objects they are."""
    one = torch.ones(())
    for member in s.members:
        module = network.get_submodule(member.module)
        shape = [1] * module.weight.dim()
        shape[axis(module, member.dim)] = -1
        module.weight.mul_(_spread(s, member, factors.to(module.weight), one).view(shape))


@torch.no_grad()
def zero_(network: nn.Module, s: GroupSet, gone: Tensor) -> None:
    """Make the groups in `gone` (bool, count) exactly zero, and the biases of output channels in them."""
    for member in s.members:
        module = network.get_submodule(member.module)
        channels = s.channels(member, gone.to(module.weight.device))
        module.weight.transpose(0, axis(module, member.dim))[channels] = 0
        if member.dim == 0 and module.bias is not None:
            module.bias[channels] = 0
