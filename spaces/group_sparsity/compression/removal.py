"""From dropped groups to removable channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import nn

from sparsemask.errors import UseError
from sparsemask.spaces.group_sparsity.groups import Branch, GroupSet, Member, zero_
from sparsemask.spaces.group_sparsity.networks.layers import ResidualBlock
from sparsemask.spaces.group_sparsity.tracing.graph import ChannelGraph

Kept = Mapping[str, "np.ndarray | torch.Tensor"]


class Removal:
    """Determines which channels are removed when groups are dropped; prepared once (tens of microseconds a set).

    A channel is removed if every convolution that produces it has zero weights for it (a constant remains), or if every
    convolution that reads it has. Grouped convolutions pass channels on and count for neither. With the branch of a
    residual block all channels inside it are removed, which are never all removed otherwise: they say of a branch that
    it is.

    Args:
        graph: the channels.
        sets: the groups.
        shifts: whether the scales and shifts of removed channels (of norms, and biases of layers that pass channels on)
            become zero, too. Most channels then leave no constant, and nothing is to be added near zero padding.
    """

    def __init__(self, graph: ChannelGraph, sets: Sequence[GroupSet], shifts: bool = False):
        self.graph, self.sets, self.shifts = graph, tuple(sets), shifts
        dense = {graph.module_of(node) for node in graph.dense}
        count = graph.count
        # A layer that runs several times has the same channels each time.
        layers = {node.weight.parameter or n: node for n, node in enumerate(graph.dense) if not node.border}.values()
        self._ends = [
            _counted([node.makes for node in layers], count),
            _counted([node.consumes for node in layers], count),
        ]
        # (module, side) -> (set, group of every channel); a side that two sets name counts once.
        self._sides: dict[tuple[str, int], list[tuple[str, np.ndarray]]] = {}
        for s in self.sets:
            for member in s.members:
                group_of = _groups(s, member, len(graph.elements(member.module, member.dim)))
                if member.module in dense:
                    self._sides.setdefault((member.module, member.dim), []).append((s.name, group_of))
        self.branches: dict[Branch, np.ndarray] = {}
        """By branch of a residual block: the elements inside it, int64 (E,)."""
        self._layers: dict[Branch, list[str]] = {}
        for branch in (b for s in self.sets for b in s.branches):
            self.branches[branch] = self._inside(branch)
            self._layers[branch] = [name for name in dense if branch.owns(name)]

    def __deepcopy__(self, memo: dict):
        return self  # never changes, and serves every copy of the network

    def gone(self, kept: Kept) -> np.ndarray:
        """Return the removed elements, bool (graph.count,).

        A tensor that would lose all of its channels keeps the first.

        Args:
            kept: by set name, bool (count,); a set that is not named keeps all of its groups.

        Raises:
            UseError: unknown set, or a mask of another length.
        """
        dropped = self._dropped(kept)
        branches = self._dropped_branches(dropped)
        without = {name for branch in branches for name in self._layers[branch]}
        lost = [[self.graph.elements(name, dim) for name in without] for dim in (0, 1)]
        for (module, dim), uses in self._sides.items():
            if module in without:
                continue
            masks = [dropped[name][group_of] for name, group_of in uses if name in dropped]
            if masks:
                lost[dim].append(self.graph.elements(module, dim)[np.logical_or.reduce(masks)])
        count = self.graph.count
        gone = np.zeros(count, dtype=bool)
        for total, channels in zip(self._ends, lost, strict=True):
            gone |= (total > 0) & (_counted(channels, count) == total)
        gone &= ~self.graph.locked(np.arange(count))
        gone = self.graph.spared(gone)
        for branch in branches:
            gone[self.branches[branch]] = True
        return gone

    def remove(self, network: nn.Module, gone: np.ndarray) -> nn.Module:
        """Remove channels, and branches that lose all of theirs, in place; see :meth:`ChannelGraph.remove`.

        Args:
            network: the traced one or one of the same structure and shapes.
            gone: bool (graph.count,), as :meth:`gone` returns it.

        Returns:
            The network.
        """
        absent = [branch for branch, elements in self.branches.items() if gone[elements].all()]
        for branch in absent:
            block = network.get_submodule(branch.block)
            assert isinstance(block, ResidualBlock)  # the rules name no others
            network.set_submodule(branch.block, block.without_branch())
        return self.graph.remove(network, gone, absent=lambda name: any(branch.owns(name) for branch in absent))

    def touched(self, s: GroupSet, elements: np.ndarray) -> np.ndarray:
        """Return which groups of a set have channels among some elements.

        Args:
            s: one of the sets.
            elements: bool (graph.count,).

        Returns:
            bool (s.count,).
        """
        groups = np.zeros(s.count + 1, dtype=bool)
        for member in s.members:
            channels = self.graph.elements(member.module, member.dim)
            groups[_groups(s, member, len(channels))[elements[channels]]] = True
        return groups[: s.count]

    def zero_(self, network: nn.Module, kept: Kept) -> nn.Module:
        """Set every dropped group of `network` to zero, in place, and return the network.

        All weights of dropped branches are, so that their channels depend on nothing.
        """
        dropped = self._dropped(kept)
        branches = self._dropped_branches(dropped)
        for name, parameter in network.named_parameters():
            if any(branch.owns(name) for branch in branches):
                parameter.data.zero_()
        for s in self.sets:
            if s.name in dropped:
                zero_(network, s, torch.from_numpy(dropped[s.name][: s.count]))
        if self.shifts:
            self._zero_shifts(network, self.gone(kept))
        return network

    @torch.no_grad()
    def _zero_shifts(self, network: nn.Module, gone: np.ndarray) -> None:
        parameters = dict(network.named_parameters())
        for name, axes in self.graph.axes.items():
            value = parameters.get(name)
            if value is not None and value.dim() == 1 and 0 in axes and name.rpartition(".")[2] in ("weight", "bias"):
                value[torch.from_numpy(gone[axes[0]]).to(value.device)] = 0

    def _inside(self, branch: Branch) -> np.ndarray:
        """The elements that no tensor outside a branch has, and that can be removed."""
        inside, outside = set(), set()
        for name, axes in self.graph.axes.items():
            (inside if branch.owns(name) else outside).update(*(elements.tolist() for elements in axes.values()))
        elements = np.array(sorted(inside - outside), dtype=np.int64)
        elements = elements[~self.graph.locked(elements)]
        if not len(elements):
            raise UseError(f"{branch.block}: its branch has no channels of its own that could be removed")
        return elements

    def _dropped_branches(self, dropped: Mapping[str, np.ndarray]) -> list[Branch]:
        return [
            branch
            for s in self.sets
            if s.name in dropped
            for branch, goes in zip(s.branches, dropped[s.name][: len(s.branches)], strict=True)
            if goes
        ]

    def _dropped(self, kept: Kept) -> dict[str, np.ndarray]:
        """By set: bool (count + 1,), the last entry for channels of no group."""
        by_name = {s.name: s for s in self.sets}
        dropped = {}
        for name, mask in kept.items():
            if name not in by_name:
                raise UseError(f"no group set '{name}' in this network; was the mask made for another one?")
            mask = np.asarray(mask.cpu() if isinstance(mask, torch.Tensor) else mask).astype(bool)
            if mask.shape != (by_name[name].count,):
                raise UseError(f"set '{name}' has {by_name[name].count} groups, the mask {mask.shape}")
            if not mask.all():
                dropped[name] = np.append(~mask, False)
        return dropped


def _groups(s: GroupSet, member: Member, channels: int) -> np.ndarray:
    """The group of every channel, (channels,); the number after the last one for a channel of none."""
    if member.index is not None:
        groups = np.asarray(member.index)
        groups = np.where(groups < 0, s.count, groups)
    else:
        groups = np.arange(s.count).repeat(s.size)
    if len(groups) != channels:
        raise UseError(f"set '{s.name}': {member.module} has {channels} channels, not {len(groups)}")
    return groups


def _counted(arrays: list[np.ndarray], count: int) -> np.ndarray:
    return np.bincount(np.concatenate(arrays), minlength=count) if arrays else np.zeros(count, np.int64)
