"""Groups of weights that are removed together: their channels, norms and scaling."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from sparsemask.spaces.group_sparsity.compression.border import Bordered

PROJECTIONS = ("P1", "P2")


@dataclass(frozen=True)
class Member:
    """One side of a convolution's or linear layer's weight."""

    module: str
    """The layer's name in the network."""
    dim: int
    """0: output channels (columns of A), 1: input channels (rows of A), independent of the weight's layout."""
    index: tuple[int, ...] | None = None
    """Group of every channel, -1 for none; None: `size` consecutive channels a group."""


@dataclass(frozen=True)
class Branch:
    """The branch of a residual block, which can be removed whole."""

    block: str
    """The block's name in the network."""
    modules: tuple[str, ...]
    """Names of the modules that only a block with a branch has."""

    def owns(self, name: str) -> bool:
        """Whether a module, parameter or buffer vanishes with the branch."""
        return any(name == module or name.startswith(f"{module}.") for module in self.modules)


@dataclass(frozen=True)
class GroupSet:
    """`count` groups; group g consists of the weights of its channels in every member."""

    name: str
    projection: str
    """"P1" or "P2": the penalty that it belongs to."""
    members: tuple[Member, ...]
    count: int
    size: int = 1
    """Channels a group, for members without `index`."""
    branches: tuple[Branch, ...] = ()
    """Of a set of residual blocks: what vanishes with each group, whose weights are those of the branch's last layer.
    The norms of such groups, which are of different sizes, are root mean squares."""

    def channels(self, member: Member, groups: Tensor) -> Tensor:
        """Return which channels of a member, bool (channels,), belong to the groups selected by bool (count,)."""
        return _spread(self, member, groups, torch.zeros((), dtype=torch.bool))


@lru_cache(maxsize=4096)
def _index(index: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(index, device=device)


@lru_cache(maxsize=4096)
def _positions(index: tuple[int, ...], count: int, device: torch.device) -> Tensor:
    """(count, largest group): positions of each group's channels, padded by the number of channels."""
    lists: list[list[int]] = [[] for _ in range(count)]
    for position, group in enumerate(index):
        if group >= 0:
            lists[group].append(position)
    width = max(1, max(map(len, lists)))
    return torch.tensor([positions + [len(index)] * (width - len(positions)) for positions in lists], device=device)


def _spread(s: GroupSet, member: Member, values: Tensor, default: Tensor) -> Tensor:
    """Values of groups (count,) -> of the member's channels; `default` for a channel of no group."""
    if member.index is None:
        return values if s.size == 1 else values.repeat_interleave(s.size)
    return torch.cat([values, default.to(values).reshape(1)])[_index(member.index, values.device)]


def axis(module: nn.Module, dim: int) -> int:
    """Dimension of a module's weight for output (`dim` 0) or input (1) channels."""
    return 1 - dim if isinstance(module, _ConvTransposeNd) else dim


def _joint(network: nn.Module, s: GroupSet, tensors: Iterable[Tensor]) -> Tensor:
    member_norms = []
    for member, tensor in zip(s.members, tensors, strict=True):
        along = axis(network.get_submodule(member.module), member.dim)
        dims = [d for d in range(tensor.dim()) if d != along]
        norm = torch.linalg.vector_norm(tensor, dim=dims) if dims else tensor.abs()
        if member.index is not None:
            padded = torch.cat([norm, norm.new_zeros(1)])
            norm = torch.linalg.vector_norm(padded[_positions(member.index, s.count, norm.device)], dim=1)
        elif s.size > 1:
            norm = torch.linalg.vector_norm(norm.view(s.count, s.size), dim=1)
        member_norms.append(norm)
    joint = member_norms[0] if len(member_norms) == 1 else torch.linalg.vector_norm(torch.stack(member_norms), dim=0)
    return joint * _per_entry(network, s, joint) if s.branches else joint


def _per_entry(network: nn.Module, s: GroupSet, like: Tensor) -> Tensor:
    """(count,): one over the root of the number of entries of each group; members have an index."""
    entries = like.new_zeros(s.count)
    for member in s.members:
        module, group_of = network.get_submodule(member.module), _index(member.index or (), like.device)
        per_channel = module.weight.numel() / module.weight.shape[axis(module, member.dim)]
        owned = group_of[group_of >= 0]
        entries.index_add_(0, owned, like.new_full(owned.shape, per_channel))
    return entries.rsqrt()


def weights(network: nn.Module, s: GroupSet) -> list[nn.Parameter]:
    """The members' weights, in order."""
    return [network.get_submodule(member.module).weight for member in s.members]


def norms(network: nn.Module, s: GroupSet) -> Tensor:
    """L2 norms of the groups over all members, (count,); differentiable, with gradient zero at a norm of zero.

    Of residual blocks they are divided by the root of the number of weights.
    """
    return _joint(network, s, weights(network, s))


def gradient_norms(network: nn.Module, s: GroupSet) -> Tensor:
    """The same of the groups' gradients, (count,); a weight without a gradient counts as zero."""
    return _joint(network, s, (torch.zeros_like(w) if w.grad is None else w.grad for w in weights(network, s)))


@torch.no_grad()
def scale_(network: nn.Module, s: GroupSet, factors: Tensor) -> None:
    """Multiply every group by its factor (count,), in place; parameters stay the same objects."""
    unit = torch.ones(())
    for member in s.members:
        module = network.get_submodule(member.module)
        shape = [1] * module.weight.dim()
        shape[axis(module, member.dim)] = -1
        module.weight.mul_(_spread(s, member, factors.to(module.weight), unit).view(shape))


@torch.no_grad()
def zero_(network: nn.Module, s: GroupSet, gone: Tensor) -> None:
    """Set the groups in `gone`, bool (count,), and biases and borders of their output channels to zero, in place."""
    for member in s.members:
        module = network.get_submodule(member.module)
        channels = s.channels(member, gone.to(module.weight.device))
        module.weight.transpose(0, axis(module, member.dim))[channels] = 0
        if member.dim == 0 and module.bias is not None:
            module.bias[channels] = 0
        if member.dim == 0 and isinstance(module, Bordered):
            module.border.transpose(0, axis(module, 0))[channels] = 0
