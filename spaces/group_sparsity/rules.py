"""Which convolutions are factorised and which groups can be removed: the published rules, and one for any network."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from sparsemask.errors import UseError
from sparsemask.spaces.group_sparsity import networks
from sparsemask.spaces.group_sparsity.groups import Branch, GroupSet, Member
from sparsemask.spaces.group_sparsity.networks import densenet, resnet, resnext, wide_resnet
from sparsemask.spaces.group_sparsity.networks.layers import ResidualBlock
from sparsemask.spaces.group_sparsity.tracing.graph import ChannelGraph, trace

GENERAL = "graph"
"""Variant for any network: the rule of :func:`general_plan`."""
CHANNELS = "channels"
"""The same without pairs, so that only filters are pruned."""
TRACED = (GENERAL, CHANNELS)
"""Variants whose rule uses the channel graph."""
BLOCKS = "blocks"
"""Variant of residual networks: whole blocks, alone or beside another variant's groups, as "columns+blocks"."""


# Layers whose weights make channels.
_PRODUCERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


@dataclass(frozen=True)
class Plan:
    """Changes to a network before training and the groups that can be removed; names are the plain network's."""

    splits: tuple[str, ...] = ()
    """Convolutions that become pairs."""
    sets: tuple[GroupSet, ...] = ()
    """Groups that can be removed; their members are modules of the network with its pairs."""
    reduction: str = "sum"
    """"sum" or "mean": how the penalties of a projection's sets are combined."""
    merge: tuple[str, ...] = ()
    """Pairs that are merged after compression."""
    double_relu: tuple[str, ...] = ()
    """ReLUs that become double ones."""


def rows(network: nn.Module, name: str, projection: str, split: bool = True) -> GroupSet:
    """Build the set of rows: input channels of a 1×1 convolution, one a group.

    Args:
        network: without pairs.
        name: of a convolution.
        projection: "P1" or "P2".
        split: whether the convolution becomes a pair, whose second convolution is meant.
    """
    conv = network.get_submodule(name)
    inner = min(conv.out_channels, conv.weight[0].numel()) if split else conv.in_channels
    return GroupSet(f"{name}.rows", projection, (Member(f"{name}.1" if split else name, 1),), inner)


def columns(network: nn.Module, name: str, projection: str, split: bool = True) -> GroupSet:
    """Build the set of columns: output channels of a convolution, one a group; arguments as for :func:`rows`."""
    count = network.get_submodule(name).out_channels
    return GroupSet(f"{name}.columns", projection, (Member(f"{name}.1" if split else name, 0),), count)


def _blocks(network: nn.Module, kind: type) -> list[tuple[str, nn.Module]]:
    return [(name, module) for name, module in network.named_modules() if isinstance(module, kind)]


def block_set(network: nn.Module, splits: Collection[str] = ()) -> GroupSet:
    """Build the set of residual blocks, one a group: the weights of the last layer of the block's branch.

    Args:
        network: without pairs.
        splits: layers that will become pairs; their groups refer to the pair's second convolution.
    """
    members, branches = [], []
    for group, (name, block) in enumerate(_blocks(network, ResidualBlock)):
        end = f"{name}.{block.end}"
        channels = len(network.get_submodule(end).weight)
        members.append(Member(f"{end}.1" if end in splits else end, 0, (group,) * channels))
        left = dict(block.without_branch().named_children())
        gone = tuple(f"{name}.{child}" for child, _ in block.named_children() if child not in left)
        branches.append(Branch(name, gone))
    return GroupSet(BLOCKS, "P1", tuple(members), len(members), branches=tuple(branches))


def _resnet(network: nn.Module, variant: str) -> Plan:
    blocks = _blocks(network, resnet.Block)
    if len(blocks[0][1].body) > 5:  # a bottleneck's own 1×1 convolutions are its matrices
        if variant != "svd":
            raise UseError("a network of bottlenecks has one rule, 'svd' (its own 1×1 convolutions), and 'graph'")
        sets = []
        for name, _ in blocks:
            sets += [columns(network, f"{name}.body.0", "P1", False), rows(network, f"{name}.body.6", "P2", False)]
        return Plan(sets=tuple(sets))
    first, second = ([f"{name}.body.{index}" for name, _ in blocks] for index in (0, 3))
    return _two_matrices(
        network, first, second, variant, reduction="mean", double_relu=tuple(f"{name}.body.2" for name, _ in blocks)
    )


def _two_matrices(network: nn.Module, first: list[str], second: list[str], variant: str, **settings) -> Plan:
    """Blocks of two 3×3 convolutions: rows or columns of the first and rows of the second can be removed."""
    kind = rows if variant == "svd" else columns
    sets = []
    for a, b in zip(first, second, strict=True):
        sets += [kind(network, a, "P1"), rows(network, b, "P2")]
    splits = tuple(name for pair in zip(first, second, strict=True) for name in pair)
    return Plan(splits, tuple(sets), merge=() if variant == "svd" else tuple(first), **settings)


def _wide_resnet(network: nn.Module, variant: str) -> Plan:
    blocks = _blocks(network, wide_resnet.Block)
    first, second = ([f"{name}.conv{number}" for name, _ in blocks] for number in (1, 2))
    return _two_matrices(network, first, second, variant)


def _resnext(network: nn.Module, variant: str) -> Plan:
    sets = []
    for name, block in _blocks(network, resnext.Block):
        groups = block.conv2.groups
        members = (Member(f"{name}.conv1", 0), Member(f"{name}.conv3", 1))
        sets.append(GroupSet(f"{name}.groups", "P1", members, groups, block.conv2.in_channels // groups))
    return Plan(sets=tuple(sets))


def _vgg(network: nn.Module, variant: str) -> Plan:
    splits = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d)][1:]
    sets = []
    for name in splits:
        sets += [rows(network, name, "P1"), columns(network, name, "P2")]
    return Plan(tuple(splits), tuple(sets[:-1]))  # the last one's columns are the classifier's inputs: kept


def _densenet(network: nn.Module, variant: str) -> Plan:
    layers = [f"{name}.body.2" for name, _ in _blocks(network, densenet.DenseLayer)]
    splits = [
        name
        for name, module in network.named_modules()
        if name in layers or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))
    ]
    kind = rows if variant == "svd" else columns
    sets = tuple(kind(network, name, "P1") for name in splits)
    return Plan(tuple(splits), sets, merge=() if variant == "svd" else tuple(splits))


# By family: the rule, its variants, the published one first.
_RULES: dict[str, tuple[Callable[[nn.Module, str], Plan], tuple[str, ...]]] = {
    "resnet": (_resnet, ("svd", "columns")),
    "wide_resnet": (_wide_resnet, ("columns", "svd")),
    "densenet": (_densenet, ("svd", "columns")),
    "resnext": (_resnext, ("svd",)),
    "vgg": (_vgg, ("svd",)),
}


_RESIDUAL = ("resnet", "resnext", "wide_resnet")


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
        graph = trace(network, torch.zeros(1, *networks.INPUT_SHAPE))
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
            own = node.weight is not None and node.weight.parameter == f"{name}.weight"
            if own and not (node.transposed and node.groups > 1):  # whose outputs are no dimension of the weight
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


def variants(arch: str) -> tuple[str, ...]:
    """Return the variants of a network's rule, the default first."""
    known = networks.architecture(arch)
    if known is None:
        return TRACED
    return (*_RULES[known.family][1], *TRACED, *([BLOCKS] if known.family in _RESIDUAL else []))


def plan_for(arch: str, variant: str | None, network: nn.Module, graph: ChannelGraph | None = None) -> Plan:
    """Return the plan for a network that `networks.create(arch, ...)` built.

    Args:
        arch: the network's name; a user's own has only the general rules.
        variant: None: the network's default. "svd": rows of every pair (and a network's only published rule);
            "columns": columns of a block's first pair, or of every pair of a DenseNet, merged afterwards;
            "graph": the general rule, shortcuts included; "channels": the same without pairs; "blocks": whole residual
            blocks, alone or, with a plus, beside the groups of another variant ("columns+blocks").
        network: without pairs.
        graph: its ChannelGraph, used by the general rules alone; None: traced with a 3×32×32 image.

    Raises:
        UseError: the network has no such variant.
    """
    known = variants(arch)
    variant = variant or known[0]
    other, plus, blocks = variant.rpartition("+")
    if BLOCKS in known and blocks == BLOCKS and (other in known[:-1] or not plus):
        beside = plan_for(arch, other, network, graph) if plus else Plan()
        return replace(beside, sets=(*beside.sets, block_set(network, beside.splits)))
    if variant not in known:
        raise UseError(f"{arch} has no variant '{variant}'; it has {', '.join(known)}")
    if variant in TRACED:
        return general_plan(network, graph, pairs=variant == GENERAL)
    return _RULES[networks.architecture(arch).family][0](network, variant)
