"""Channel dependencies of a network: which channels can only be removed together.

Hinge (Li et al. 2020, arXiv 2003.08935) treats each architecture by hand; here dependencies are traced in one run.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor, nn

from sparsemask.errors import UseError, choose
from sparsemask.spaces.group_sparsity.inputs import AnyInputs, Inputs, Structure
from sparsemask.spaces.group_sparsity.tracing import numbers, trial
from sparsemask.spaces.group_sparsity.tracing.duplicate import duplicate
from sparsemask.spaces.group_sparsity.tracing.record import (
    Contraction,
    Counted,
    Node,
    RemovesChannels,
    Value,
    Watched,
    replaced,
    tensors_in,
)
from sparsemask.spaces.group_sparsity.tracing.slicing import keep_, tensors
from sparsemask.spaces.group_sparsity.tracing.tracer import Tracer, WritesWeights

STATISTICS = ("exact", "free")
# Traces of one network until every size in its code is decided; the rest is locked then, in as many more at most.
_TRIES = 16


def _resolved(node: Node, classes: np.ndarray, value: Callable[[Value | None], Any]) -> Node:
    is_product = node.makes is not None
    resolved = copy.copy(node)
    resolved.inputs = tuple(map(value, node.inputs))
    resolved.outputs = tuple(map(value, node.outputs))
    resolved.args = replaced(node.args, Value, value)
    resolved.consumes = classes[node.consumes] if is_product else None
    resolved.makes = classes[node.makes] if is_product else None
    resolved.weight, resolved.bias = value(node.weight), value(node.bias)
    resolved.sums = tuple(Contraction(classes[each.elements], each.places) for each in node.sums)
    return resolved


class ChannelGraph:
    """Every channel of a traced network as an *element*: channels that are removed together share one number.

    Elements are numbered 0 ... count - 1. Channels of the network's input and output, and of operators that the trace
    does not understand, are locked. Made by :func:`trace`; holds no tensors, valid for every network of the same
    structure.

    Attributes:
        count: number of elements.
        nodes: the convolutions and matrix products in order of execution, elements resolved.
        axes: by name of parameter or buffer: dimension -> elements along it.
        inputs: the structure of the inputs it was traced with.
        shape: of the first of them.
        numbers: attributes of modules that count channels and follow them.
    """

    def __init__(self, watched: Watched, inputs: Structure):
        self._classes, self._reasons, self._approximations = watched.elements.resolve()
        self.inputs, self.shape = inputs, inputs.shape
        self.count = len(self._reasons)
        self._locked = np.array([reason is not None for reason in self._reasons], dtype=bool)
        known: dict[int, Value] = {}

        def resolved(value: Value | None) -> Value | None:
            if value is not None and value.number not in known:
                axes = {dim: self._classes[elements] for dim, elements in value.axes.items()}
                known[value.number] = replace(value, axes=axes)
            return value and known[value.number]

        self.all_nodes = [_resolved(node, self._classes, resolved) for node in watched.nodes]
        self.nodes = [node for node in self.all_nodes if node.makes is not None]
        self.calls = [(name, type(module), resolved(a), resolved(b)) for name, module, a, b in watched.calls]
        parameters = {name: resolved(value) for name, value in watched.parameters.items()}
        self.axes = {name: value.axes for name, value in parameters.items() if value is not None and value.axes}
        # A convolution's border (of a compressed network) is a product too, but not the one its name stands for.
        self._owned = {self.module_of(n): n for n in self.nodes if not n.border}
        self.numbers = tuple(replace(n, elements=self._classes[n.elements]) for n in watched.numbers)
        self._adaptable = {
            name: (before.axes[1], after.axes[1])
            for name, kind, before, after in self.calls
            if issubclass(kind, RemovesChannels) and before and after and 1 in before.axes and 1 in after.axes
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> ChannelGraph:
        return self  # never changes, and serves every copy of the network

    @staticmethod
    def module_of(node: Node) -> str:
        """Name of the module whose weight a product uses; of the running module if the weight is computed."""
        name = node.weight.parameter if node.weight else ""
        return name.rpartition(".")[0] if name else node.module

    def node(self, module: str) -> Node:
        """Return the convolution or matrix product of a module.

        Raises:
            UseError: the module executed none.
        """
        if module not in self._owned:
            raise UseError(f"no convolution or linear layer '{module}' ran when the network was traced")
        return self._owned[module]

    def elements(self, module: str, dim: int) -> np.ndarray:
        """Return the elements along a module's outputs or inputs, int64 (channels,).

        Args:
            module: name of a convolution, linear layer or any module with a `weight` (batch norms: dim 0).
            dim: 0: output channels, 1: input channels.

        Raises:
            UseError: a module that did not run when the network was traced.
        """
        owned = self._owned.get(module)
        if owned is not None and owned.weight is not None and owned.weight.parameter:
            along = owned.makes if dim == 0 else owned.consumes
            assert along is not None  # it is a product
            return along
        axes = self.axes.get(f"{module}.weight", {})
        if dim not in axes:
            raise UseError(f"'{module}' has no channels along dimension {dim} in the traced network")
        return axes[dim]

    def locked(self, elements: np.ndarray) -> np.ndarray:
        """Which elements can never be removed, bool of the shape of `elements`."""
        return np.asarray(self._locked[elements])

    def reason(self, element: int) -> str | None:
        """Reason why an element is locked; None if it is not."""
        return self._reasons[element]

    def approximation(self, element: int) -> str | None:
        """Reason why removing an element changes the function; None if it does not (`statistics` of the trace)."""
        return self._approximations[element]

    @functools.cached_property
    def approximate(self) -> np.ndarray:
        """Elements whose removal changes the function, since statistics are taken over them, bool (count,)."""
        return np.array([reason is not None for reason in self._approximations], dtype=bool)

    def resolved(self, elements: np.ndarray) -> np.ndarray:
        """Numbers in this graph of elements as they were recorded."""
        return np.asarray(self._classes[elements])

    @functools.cached_property
    def readers(self) -> dict[int, list[Node]]:
        """The operators that read each tensor, by the number of its value, in order of execution."""
        readers: dict[int, list[Node]] = {}
        for node in self.all_nodes:
            for number in {value.number for value in node.inputs}:
                readers.setdefault(number, []).append(node)
        return readers

    @functools.cached_property
    def dense(self) -> list[Node]:
        """Products that create and consume channels; grouped ones that lose whole groups pass them on."""
        return [node for node in self.nodes if node.mixes]

    @functools.cached_property
    def shared(self) -> frozenset[str]:
        """Names of the parameters and buffers that several operators use."""
        uses = Counter(
            value.parameter
            for node in self.all_nodes
            if node.op not in ("t", "transpose")
            for value in {value.number: value for value in node.inputs}.values()
        )
        return frozenset(name for name, count in uses.items() if name and count > 1)

    @functools.cached_property
    def _lines(self) -> tuple[np.ndarray, np.ndarray]:
        """The elements along every axis of every tensor, concatenated, and where each begins."""
        arrays = [e for axes in self.axes.values() for e in axes.values() if len(e)]
        return np.concatenate(arrays), np.cumsum([0, *map(len, arrays[:-1])])

    def spared(self, gone: np.ndarray) -> np.ndarray:
        """`gone`, bool (count,), without the first channel of each tensor that would lose all of them."""
        gone, (lines, starts) = gone.copy(), self._lines
        remaining = np.add.reduceat((~gone[lines]).astype(np.int64), starts)
        gone[lines[starts[remaining == 0]]] = False
        return gone

    def remove(
        self,
        network: nn.Module,
        gone: np.ndarray,
        hollow: bool = False,
        absent: Callable[[str], bool] = lambda name: False,
    ) -> nn.Module:
        """Remove channels in place: from weights, biases, buffers, channel and group numbers.

        Parameters stay the same objects. The contributions of removed channels are lost; see
        :func:`sparsemask.spaces.group_sparsity.compression.compress.compress`, which preserves the function. Modules
        with channel numbers of their own are notified by ``remove_channels(keep_in, keep_out)``
        (:class:`sparsemask.spaces.group_sparsity.tracing.record.RemovesChannels`).

        Args:
            network: the traced one or one of the same structure and shapes.
            gone: elements to remove, bool (count,) or their numbers.
            hollow: whether tensors that lose channels only get their sizes, with zeros.
            absent: of which modules and parameters, by name, the traced network has more than this one.

        Returns:
            The network.

        Raises:
            UseError: a locked element, a tensor that would lose all of its channels, or different numbers of channels
                where one number of a module stands for both.
        """
        gone = self.as_mask(gone)
        if (bad := np.flatnonzero(gone & self._locked)).size:
            raise UseError(f"channel {bad[0]} of the graph cannot be removed: {self.reason(int(bad[0]))}")
        present = {name: axes for name, axes in self.axes.items() if not absent(name)}
        for name, axes in present.items():
            for elements in axes.values():
                if len(elements) and gone[elements].all():
                    raise UseError(f"{name} would lose all of its channels; keep at least one")
        changed = numbers.remaining([n for n in self.numbers if not absent(n.module)], ~gone)
        fixed = {self.module_of(node) for node in self.nodes if node.inside}
        keep_(network, present, ~gone, fixed, hollow)
        numbers.update_(network, changed)
        for name, (before, after) in self._adaptable.items():
            if not absent(name) and (gone[before].any() or gone[after].any()):
                module = network.get_submodule(name)
                assert isinstance(module, RemovesChannels)
                module.remove_channels(~gone[before], ~gone[after])
        return network

    def as_mask(self, gone: np.ndarray) -> np.ndarray:
        """bool (count,) from a mask or from numbers of elements."""
        gone = np.asarray(gone)
        if gone.dtype == bool:
            return gone
        mask = np.zeros(self.count, dtype=bool)
        mask[gone.astype(np.int64)] = True
        return mask


def trace(network: nn.Module, example: AnyInputs, statistics: str = "exact") -> ChannelGraph:
    """Run a network in evaluation mode and record which channels depend on each other.

    Sums and products tie channels, concatenations join them, convolutions and linear layers make new ones, grouped
    convolutions tie whole groups, a flattened map repeats its channels. Sizes written in the code, also those that
    modules keep as attributes, are tried out on a copy. A module that is used several times has the same channels each
    time. The network is not changed.

    Args:
        network: any network of convolutions or linear layers.
        example: an input (B, C, ...); a tuple of several, a dict of keyword arguments, each may be nested.
        statistics: treatment of channels over which a layer norm, a mean, a softmax ... is taken, so that removing
            some changes what becomes of the others. "exact": they are locked. "free": they can be removed, and
            :attr:`ChannelGraph.approximate` tells them; for networks that are trained further.

    Returns:
        The channel graph.

    Raises:
        UseError: value-dependent control flow, a network without convolutions, or one that does not run on the input;
            the message names the module.
    """
    choose(statistics, STATISTICS, "statistics")
    if next(network.parameters(), None) is None:
        raise UseError(f"{type(network).__name__} has no convolution: there is nothing to prune")
    with _garbage_kept():
        graph = _traced(network, Inputs.of(example), statistics == "free")
    if not any(p.dim() > 2 for p in network.parameters()) and graph.locked(np.arange(graph.count)).all():
        raise UseError(f"{type(network).__name__} has no convolution: there is nothing to prune")
    if not graph.nodes:
        raise UseError(f"{type(network).__name__} executed no convolution: there is nothing to prune")
    return graph


@contextlib.contextmanager
def _garbage_kept() -> Iterator[None]:
    """Inside, no garbage is collected: the many small objects of a trace all live until its end."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _traced(network: nn.Module, inputs: Inputs, free: bool) -> ChannelGraph:
    """Trace a duplicate that does not compute its products; the network itself where it must compute them."""
    other: nn.Module | None = None
    with contextlib.suppress(Exception):  # what a user's modules raise when they are copied; lazy ones, for example
        other = duplicate(network)
    if other is not None:
        with contextlib.suppress(WritesWeights):
            graph = _settled(other, inputs, free, spare=True)
            if _holds_all(network, graph):
                return graph
    return _settled(network, inputs, free, spare=False)


def _holds_all(network: nn.Module, graph: ChannelGraph) -> bool:
    """Whether a network has all that the graph names, though some may be made when it first runs."""
    modules = dict(network.named_modules())
    numbered = all(n.module in modules and n.attribute in vars(modules[n.module]) for n in graph.numbers)
    return numbered and graph.axes.keys() <= tensors(network).keys()


def _settled(network: nn.Module, inputs: Inputs, free: bool, spare: bool) -> ChannelGraph:
    """Trace until all sizes in the network's code follow the channels that are not locked."""
    structure, held = inputs.structure(), _held(network)
    ways: dict[trial.Key, int] = {}
    fixed: set[str | int] = set()
    watched = Tracer(network, free_statistics=free, spare=spare).run(inputs)
    if held != _held(network):  # something was computed once and kept: from now on runs are alike
        watched = Tracer(network, free_statistics=free, spare=spare).run(inputs)
    for attempt in range(2 * _TRIES):
        _tie_counted(watched)
        graph = ChannelGraph(watched, structure)
        undecided = [site for site in watched.sites if site.way < site.ways]
        tried = [site for site in undecided if site.tried]
        doubtful = watched.written or any(site.tried for site in watched.sites)
        failing: Set[trial.Key | str | int] = trial.useless(graph, undecided)  # told without a run
        if doubtful and not failing:
            failing = trial.failing(network, inputs, graph, tried, fixed, spare)
        if not failing:
            return graph
        if attempt >= _TRIES:  # enough: what is undecided is locked, and what still fails
            ways.update({site.key: site.ways for site in undecided})
        fixed |= {key for key in failing if isinstance(key, str | int)}
        ways.update({key: ways.get(key, 0) + 1 for key in failing if isinstance(key, tuple)})
        watched = Tracer(network, ways, free, fixed, spare).run(inputs)
    watched.elements.lock(np.arange(watched.elements.count), "sizes in the network's code do not follow the channels")
    return ChannelGraph(watched, structure)


def _tie_counted(watched: Watched) -> None:
    """Tie what one attribute counts, entry by entry, so that it keeps one value."""
    first: dict[Counted, np.ndarray] = {}
    for number in watched.numbers:
        watched.elements.tie(first.setdefault(number.key, number.elements), number.elements)


def _held(network: nn.Module) -> int:
    """Number of tensors that modules keep beside their parameters and buffers, in dictionaries or attributes."""
    return sum(
        len(tensors_in(tuple(value.values())) if type(value) is dict else tensors_in(value))
        for module in network.modules()
        for key, value in vars(module).items()
        if (type(value) is dict or isinstance(value, Tensor)) and not key.startswith("_")
    )
