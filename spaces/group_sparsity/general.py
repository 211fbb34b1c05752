"""Where matrices go in any network of convolutions: the rule that reads the graph instead of a table."""

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
    """The plan for any traced network, which has no pairs in it yet.

    Every convolution without groups and larger than 1×1, but the first, becomes a pair whose rows may vanish ("P1"),
    which lowers its rank. Channels that are not locked may vanish too ("P2"): those that shortcuts tie
    together as one group, its norm joint over all layers that make it. Without `pairs` nothing is split and channels
    alone may vanish.
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
    """By name, in order of execution: the elements that the layers among `nodes` make, grouped ones included."""
    found = {}
    for node in nodes:
        name = graph.module_of(node)
        if isinstance(network.get_submodule(name), _PRODUCERS):
            if node.weight is not None and node.weight.parameter == f"{name}.weight":
                found[name] = node.makes
    return found


def channel_sets(network: nn.Module, graph: ChannelGraph, splits: set[str] = frozenset(), projection: str = "P2"):
    """The sets of channels that may vanish: a group for every element that is free and made by layers.

    Depth-wise and grouped convolutions, which pass channels on, count as makers too: what they make of a constant under
    padding differs from place to place, and only as zeros leaves a channel that can go without a trace.

    Elements made by the same layers form a set, so that norms within one are of the same number of weights. A
    layer in `splits` is meant as the pair it will be.
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
    order = {name: place for place, name in enumerate(producers)}
    sets, used = [], set()
    for names in sorted(alike, key=lambda names: [order[name] for name in names]):
        group = np.full(graph.count, -1)
        group[alike[names]] = np.arange(len(alike[names]))
        label = f"{names[0]}.channels" if names[0] not in used else f"{names[0]}.channels{len(names)}"
        used.add(names[0])
        places = {name: f"{name}.1" if name in splits else name for name in names}
        members = {places[name]: group[producers[name]] for name in names}
        sets.append(_set(label, projection, members, len(alike[names])))
    return sets


def _set(name: str, projection: str, members: dict[str, np.ndarray], count: int) -> GroupSet:
    """A set out of the groups of every member's output channels; without indices where they are plain."""
    size = max(1, len(next(iter(members.values()))) // count)
    plain = np.arange(count).repeat(size)
    if all(np.array_equal(index, plain) for index in members.values()):
        return GroupSet(name, projection, tuple(Member(module, 0) for module in members), count, size)
    indexed = tuple(Member(module, 0, tuple(index.tolist())) for module, index in members.items())
    return GroupSet(name, projection, indexed, count)
