"""Cost of a network after removing channels, computed from its graph without changing a tensor."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from sparsemask.errors import UseError
from sparsemask.spaces.group_sparsity.groups import Branch
from sparsemask.spaces.group_sparsity.pairs import Pair, merged_is_cheaper
from sparsemask.spaces.group_sparsity.tracing.graph import ChannelGraph

# Modules that the published convention counts with one operation an element.
_RECTIFIERS = (nn.ReLU, nn.ReLU6, nn.PReLU, nn.LeakyReLU, nn.ELU)

# Dimensions of a parameter along which there can be channels.
_AXES = 4


@dataclass(frozen=True)
class Count:
    """Cost of one sample."""

    published: int
    """Multiply-adds by the paper's convention: convolutions, linear layers, 2 an element for BatchNorm2d and 1 for
    modules of ReLU's kind."""
    multiply_adds: int
    """Multiply-adds executed by convolutions and linear layers, as :func:`sparsemask.costs.multiply_adds` counts."""
    parameters: int
    """Trainable parameters, or all."""


@dataclass(frozen=True)
class LayerCounts:
    """Of every convolution and matrix product of a graph (`ChannelGraph.nodes`), int64 (nodes,) each."""

    into: np.ndarray
    """Input channels, of all groups."""
    out: np.ndarray
    """Output channels."""
    weights: np.ndarray
    """Entries of the weight."""
    multiply_adds: np.ndarray
    """Executed for one sample."""


class Products:
    """Counts what the convolutions and matrix products of a graph take without some channels.

    Args:
        graph: whose nodes are counted; sizes are those of the input it was traced with.
    """

    def __init__(self, graph: ChannelGraph):
        self.graph = graph
        nodes = graph.nodes
        self._into = _Lines([node.consumes for node in nodes])
        self._out = _Lines([node.makes for node in nodes])
        whole = [node.groups > 1 and not node.inside for node in nodes]
        self._whole, self._groups = np.array(whole), np.array([node.groups if node.inside else 1 for node in nodes])
        self._per_group = np.array([len(node.consumes) // node.groups for node in nodes])
        self.kernel = np.array([_volume(n.weight.shape[2:]) if n.op == "convolution" else 1 for n in nodes])
        # A transposed convolution multiplies at every position of its input.
        at = [node.inputs[0] if node.transposed else node.outputs[0] for node in nodes]
        self.positions = np.array([_spread(value.shape, graph.shape[0]) for value in at])

    def count(self, gone: np.ndarray | None = None) -> LayerCounts:
        """Count every product by itself.

        Args:
            gone: removed elements, bool (graph.count,) or their numbers; None: the whole network.
        """
        alive = _alive(self.graph, gone)
        into, out = self._into.count(alive), self._out.count(alive)
        # A grouped convolution that loses whole groups keeps what one group has.
        weights = self.kernel * np.where(self._whole, self._per_group, into // self._groups) * out
        return LayerCounts(into, out, weights, weights * self.positions)


class Accounting:
    """Counts the cost of a network without some channels; prepared once, then a few array operations per count.

    Args:
        network: the traced network, with its pairs; neither kept nor changed.
        graph: its channels. Sizes are those of the input it was traced with.
        input_shape: checked against the graph's if given, (B, C, H, W) or (C, H, W).
        frozen: also count parameters that are not trainable.
        branches: of residual blocks, with the elements inside each: without all of these the branch is not counted.

    Raises:
        UseError: `input_shape` differs from the graph's.
    """

    def __init__(
        self,
        network: nn.Module,
        graph: ChannelGraph,
        input_shape: Collection[int] | None = None,
        frozen: bool = False,
        branches: Mapping[Branch, np.ndarray] | None = None,
    ):
        if input_shape is not None and tuple(input_shape)[-3:] != graph.shape[-3:]:
            raise UseError(f"the graph was traced with {graph.shape}, not {tuple(input_shape)}; trace it again")
        self.graph = graph
        self.names = [graph.module_of(node) for node in graph.nodes]
        self._products = Products(graph)
        self._branches = dict(branches or {})
        self._elementwise(graph)
        self._parameters(network, frozen)
        self._pairs(network)

    def __deepcopy__(self, memo: dict):
        return self  # never changes, and serves every copy of the network

    def count(self, gone: np.ndarray | None = None, merge: Collection[str] = ()) -> Count:
        """Count the cost without some elements.

        Args:
            gone: removed elements, bool (graph.count,) or their numbers; None: the whole network.
            merge: names of pairs that are counted as the one convolution they are equal to.

        Raises:
            UseError: a name that is no pair.
        """
        alive, counts = _alive(self.graph, gone), self._products.count(gone)
        into, out, products = counts.into, counts.out, counts.multiply_adds
        # Which branches stand, and one more for all that is in none.
        stand = np.array([*(alive[inside].any() for inside in self._branches.values()), True])
        tensors = self._fixed * self._axes.count(alive).reshape(-1, _AXES).prod(1) * stand[self._tensor_in]
        parameters = int(self._constant @ stand) + int(tensors.sum())
        if unknown := set(merge) - set(self.pair_names):
            raise UseError(f"'{min(unknown)}' is no pair of this network")
        merged = np.array([name in merge for name in self.pair_names], dtype=bool)
        a, b = self._first[merged], self._second[merged]
        weights = self._products.kernel[a] * into[a] * out[b]
        parameters += int((weights - counts.weights[a] - counts.weights[b]).sum())
        products[a], products[b] = weights * self._products.positions[b], 0
        total = int(products.sum())
        return Count(total + int((self._rate * stand[self._map_in]) @ self._maps.count(alive)), total, parameters)

    def remaining_pairs(self, gone: np.ndarray | None = None) -> set[str]:
        """Return the names of the pairs that are left: all but those of branches that are gone."""
        ranks = self._products.count(gone).out[self._first]
        return {name for name, rank in zip(self.pair_names, ranks, strict=True) if rank}

    def _branch_of(self, name: str) -> int:
        """Position of the branch that a module or parameter is in; after the last one if it is in none."""
        inside = (i for i, branch in enumerate(self._branches) if branch.owns(name))
        return next(inside, len(self._branches))

    def chosen(self, gone: np.ndarray | None = None) -> list[str]:
        """Return the names of the pairs that take no more multiply-adds as one convolution."""
        counts, a, b = self._products.count(gone), self._first, self._second
        into, out = counts.into, counts.out
        cheaper = merged_is_cheaper(self._products.kernel[a], into[a], out[a], out[b])
        return [name for name, chosen in zip(self.pair_names, cheaper, strict=True) if chosen]

    def layers(self, gone: np.ndarray | None = None) -> Mapping[str, tuple[int, int]]:
        """Return the remaining input and output channels of each convolution and linear layer, by name."""
        counts = self._products.count(gone)
        ends = zip(counts.into.tolist(), counts.out.tolist(), strict=True)
        every = zip(self.graph.nodes, self.names, ends, strict=True)
        return {name: both for node, name, both in every if not node.border}

    def _elementwise(self, graph: ChannelGraph) -> None:
        lines, rates, places = [], [], []
        for name, kind, _, after in graph.calls:
            rate = 2 if issubclass(kind, nn.BatchNorm2d) else 1 if issubclass(kind, _RECTIFIERS) else 0
            if rate and after is not None and len(after.shape) > 1:
                lines.append(after.axes.get(1, np.zeros(0, np.int64)))
                rates.append(rate * _spread(after.shape, graph.shape[0]))
                places.append(self._branch_of(name))
        self._maps, self._rate = _Lines(lines), np.array(rates, dtype=np.int64)
        self._map_in = np.array(places, dtype=np.int64)

    def _parameters(self, network: nn.Module, frozen: bool) -> None:
        """Constant parameters, and of each tensor its axes of channels and what it has for each of them."""
        lines, fixed, places = [], [], []
        always = np.array([self.graph.count])  # one more element that is never removed: an axis of length one
        self._constant = np.zeros(len(self._branches) + 1, dtype=np.int64)  # by place
        for name, parameter in network.named_parameters():
            axes = [e for e in self.graph.axes.get(name, {}).values() if len(e)]
            if not (frozen or parameter.requires_grad):
                continue
            if not axes:
                self._constant[self._branch_of(name)] += parameter.numel()
                continue
            first, others = axes[:_AXES], axes[_AXES:]
            for elements in others:  # positions: of more dimensions than channels ever have
                if not self.graph.locked(elements).all():
                    raise UseError(f"{name} has channels along more than {_AXES} dimensions")
            lines += [*first, *[always] * (_AXES - len(first))]
            fixed.append(parameter.numel() // _volume(map(len, first)))
            places.append(self._branch_of(name))
        self._axes, self._fixed = _Lines(lines), np.array(fixed, dtype=np.int64)
        self._tensor_in = np.array(places, dtype=np.int64)

    def _pairs(self, network: nn.Module) -> None:
        node_index = {name: i for i, name in enumerate(self.names) if self.graph.node(name) is self.graph.nodes[i]}
        names = [name for name, m in network.named_modules() if isinstance(m, Pair)]
        self.pair_names = [name for name in names if f"{name}.0" in node_index and f"{name}.1" in node_index]
        self._first = np.array([node_index[f"{name}.0"] for name in self.pair_names], dtype=np.int64)
        self._second = np.array([node_index[f"{name}.1"] for name in self.pair_names], dtype=np.int64)


def _alive(graph: ChannelGraph, gone: np.ndarray | None) -> np.ndarray:
    """Which elements remain, and one more that always does, bool (graph.count + 1,)."""
    gone = np.zeros(graph.count, bool) if gone is None else graph.as_mask(gone)
    return np.append(~gone, True)


class _Lines:
    """Many arrays of elements concatenated, so that the remaining ones of all are counted at once."""

    def __init__(self, arrays: list[np.ndarray]):
        self._at = np.concatenate(arrays) if arrays else np.zeros(0, np.int64)
        self._ends = np.cumsum([0, *map(len, arrays)])

    def count(self, alive: np.ndarray) -> np.ndarray:
        """int64 (arrays,)"""
        sums = np.concatenate([[0], np.cumsum(alive[self._at], dtype=np.int64)])
        return sums[self._ends[1:]] - sums[self._ends[:-1]]


def _volume(sizes) -> int:
    return int(np.prod(list(sizes), dtype=np.int64))


def _spread(shape: tuple[int, ...], batch: int) -> int:
    """Positions a sample of a tensor (B, C, ...) or (rows, C): the product of all dimensions but channels."""
    return max(1, shape[0] // batch) * _volume(shape[2:])
