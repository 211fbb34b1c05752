"""Channels that can only be removed together: the layers that make, normalise and read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsemask.errors import UseError
from sparsemask.spaces.group_sparsity.groups import GroupSet, Member
from sparsemask.spaces.group_sparsity.rules import channel_sets
from sparsemask.spaces.group_sparsity.tracing.graph import ChannelGraph

Patterns = str | Sequence[str]
"""Names of layers, or patterns of them with ``*`` and ``?``."""


@dataclass(frozen=True)
class Channels:
    """A set of removable channels that the same layers make; a *group* is what is removed together, mostly one channel.

    Attributes:
        groups: the groups, with the layers that make them (dim 0 of their weights).
        elements: number of each group in the channel graph, int64 (count,).
        readers: the layers that read them (dim 1).
        norms: the batch norms in between (dim 0).
    """

    groups: GroupSet
    elements: np.ndarray
    readers: tuple[Member, ...]
    norms: tuple[Member, ...]

    @property
    def name(self) -> str:
        """Name of the set: that of the first layer that makes it, and "channels"."""
        return self.groups.name

    @property
    def count(self) -> int:
        """Number of groups."""
        return self.groups.count

    @property
    def makers(self) -> tuple[Member, ...]:
        """The layers that make the channels."""
        return self.groups.members

    def per_group(self, member: Member, values: Tensor) -> Tensor:
        """Sum values of a member's channels, (channels, ...), over those of each group: (count, ...)."""
        index = torch.from_numpy(group_index(self.groups, member, len(values))).to(values.device)
        total = values.new_zeros(self.count + 1, *values.shape[1:])
        return total.index_add_(0, index, values)[: self.count]


def group_index(s: GroupSet, member: Member, channels: int) -> np.ndarray:
    """The group of every channel of a member, int64 (channels,); `count` for channels of none.

    A grouped convolution that loses the same channels of every group has weights for those of one.
    """
    if member.index is None:
        return np.minimum(np.arange(channels) // s.size, s.count)
    index = np.asarray(member.index[:channels], dtype=np.int64)
    return np.where(index < 0, s.count, index)


def removable(network: nn.Module, graph: ChannelGraph) -> tuple[Channels, ...]:
    """All channels of a network that can be removed, in order of execution.

    Args:
        network: the traced network.
        graph: its channels.
    """
    result = []
    for s in channel_sets(network, graph):
        elements = np.zeros(s.count, dtype=np.int64)
        for member in s.members:
            made = graph.elements(member.module, 0)
            index = group_index(s, member, len(made))
            elements[index[index < s.count]] = made[index < s.count]
        group_of = np.full(graph.count, -1)
        group_of[elements] = np.arange(s.count)
        result.append(Channels(s, elements, _readers(graph, group_of), _norms(network, graph, group_of)))
    return tuple(result)


def _readers(graph: ChannelGraph, group_of: np.ndarray) -> tuple[Member, ...]:
    members = {}
    for node in graph.dense:
        name = graph.module_of(node)
        if node.weight is not None and node.weight.parameter == f"{name}.weight":
            index = group_of[node.consumes]
            if (index >= 0).any():
                members[name] = Member(name, 1, tuple(index.tolist()))
    return tuple(members.values())


def _norms(network: nn.Module, graph: ChannelGraph, group_of: np.ndarray) -> tuple[Member, ...]:
    members = []
    for name, module in network.named_modules():
        axes = graph.axes.get(f"{name}.weight", {})
        if isinstance(module, _BatchNorm) and 0 in axes and (group_of[axes[0]] >= 0).any():
            members.append(Member(name, 0, tuple(group_of[axes[0]].tolist())))
    return tuple(members)


def selected(channels: Sequence[Channels], only: Patterns = (), skip: Patterns = ()) -> tuple[Channels, ...]:
    """The channels that patterns allow to be removed.

    Args:
        channels: all of them.
        only: all layers that make a channel must match one of these; empty: no condition.
        skip: none of them may match one of these.

    Raises:
        UseError: a pattern that matches no layer.
    """
    names = [member.module for c in channels for member in c.makers]
    only, skip = as_patterns(only, "only", names), as_patterns(skip, "skip", names)
    return tuple(
        c
        for c in channels
        if (not only or all(matches(m.module, only) for m in c.makers))
        and not any(matches(m.module, skip) for m in c.makers)
    )


def as_patterns(patterns: Patterns, what: str, names: Sequence[str]) -> tuple[str, ...]:
    """Patterns as a tuple.

    Raises:
        UseError: one that matches none of `names`; the message begins with `what`.
    """
    patterns = (patterns,) if isinstance(patterns, str) else tuple(patterns)
    for pattern in patterns:
        if not any(matches(name, (pattern,)) for name in names):
            some = ", ".join(dict.fromkeys(names[:3])) or "none"
            raise UseError(f"{what}: '{pattern}' matches no layer whose channels can be removed (there are {some}, …)")
    return patterns


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a layer's name matches one of the patterns."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)
