"""Factorisation and group sets for any convolutional network, derived from its channel graph."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from sparsemask.spaces.group_sparsity.channels import ChannelGraph, trace
from sparsemask.spaces.group_sparsity.groups import GroupSet, Member
from sparsemask.spaces.group_sparsity.networks import INPUT_SHAPE
from sparsemask.spaces.group_sparsity.rules import Plan, rows

_PRODUCERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


def general_plan(network: nn.Module, graph: ChannelGraph | None = None, pairs: bool = True) -> Plan:
    """Derive the plan of a network from its channel graph.

    Every convolution without groups and larger than 1×1, except the first, becomes a pair whose rows can be removed
    ("P1"), which lowers its rank. Channels that are not locked can be removed too ("P2"); channels that shortcuts tie
    together form one group, whose norm is taken over all layers that produce it.

    Args:
        network: without pairs.
        graph: its channels; None: traced with a 3×32×32 image.
        pairs: False: factorise nothing, so that only channels can be removed.
    """
    if graph is None:
        graph = trace(network, torch.zeros(1, *INPUT_SHAPE))
    dense = [node for node in graph.nodes[1:] if node.groups == 1]
    splits = tuple(name for name in _producers(network, graph, dense) if pairs and _splits(network, name))
    sets = [rows(network, name, "P1") for name in splits]
    return Plan(splits, (*sets, *channel_sets(network, graph, set(splits))), reduction="mean")


def _splits(network: nn.Module, name: str) -> bool:
    conv = network.get_submodule(name)
    return type(conv) is nn.Conv2d and conv.groups == 1 and max(conv.kernel_size) > 1


def _producers(network: nn.Module, graph: ChannelGraph, nodes: list) -> dict[str, np.ndarray]:
    """Output elements of the layers among `nodes`, grouped ones included, by name in order of execution."""
    producers = {}
    for node in nodes:
        name = graph.module_of(node)
        if isinstance(network.get_submodule(name), _PRODUCERS):
            if node.weight is not None and node.weight.parameter == f"{name}.weight":
                producers[name] = node.makes
    return producers


def channel_sets(network: nn.Module, graph: ChannelGraph, splits: set[str] = frozenset(), projection: str = "P2"):
    """Build the sets of removable channels: a group for every element that is not locked and produced by layers.

    Depth-wise and grouped convolutions, which pass channels on, count as producers too: under padding their output for
    a constant input varies between positions, and only a channel of zeros can be removed exactly.

    Elements produced by the same layers form a set, so that all norms of a set cover the same number of weights.

    Args:
        network: without pairs.
        graph: its channels.
        splits: layers that will become pairs; their groups refer to the pair's second convolution.
        projection: "P1" or "P2", of the sets.
    """
    producers = _producers(network, graph, graph.nodes)
    makers: list[list[str]] = [[] for _ in range(graph.count)]
    for name, elements in producers.items():
        for element in np.unique(elements):
            makers[element].append(name)
    for node in graph.dense:  # made where no member can stand for the weight: never to be called zero
        if graph.module_of(node) not in producers:
            for element in np.unique(node.makes):
                makers[element].clear()
    alike: dict[tuple[str, ...], list[int]] = {}
    for element, names in enumerate(makers):
        if names and not graph.locked(np.array(element)):
            alike.setdefault(tuple(names), []).append(element)
    order = {name: index for index, name in enumerate(producers)}
    sets, used = [], set()
    for names in sorted(alike, key=lambda names: [order[name] for name in names]):
        group = np.full(graph.count, -1)
        group[alike[names]] = np.arange(len(alike[names]))
        label = f"{names[0]}.channels" if names[0] not in used else f"{names[0]}.channels{len(names)}"
        used.add(names[0])
        layers = {name: f"{name}.1" if name in splits else name for name in names}
        members = {layers[name]: group[producers[name]] for name in names}
        sets.append(_set(label, projection, members, len(alike[names])))
    return sets


def _set(name: str, projection: str, members: dict[str, np.ndarray], count: int) -> GroupSet:
    """A set from the group of every output channel of its members; indices are omitted for consecutive groups."""
    size = max(1, len(next(iter(members.values()))) // count)
    plain = np.arange(count).repeat(size)
    if all(np.array_equal(index, plain) for index in members.values()):
        return GroupSet(name, projection, tuple(Member(module, 0) for module in members), count, size)
    indexed = tuple(Member(module, 0, tuple(index.tolist())) for module, index in members.items())
    return GroupSet(name, projection, indexed, count)
