"""Channel dependencies of a network: which channels can only be removed together.

Hinge (Li et al. 2020, arXiv 2003.08935) treats each architecture by hand; here dependencies are traced in one run.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from sparsemask.errors import UseError
from sparsemask.spaces.group_sparsity.tracing.record import Node, RemovesChannels, Value, Watched
from sparsemask.spaces.group_sparsity.tracing.slicing import keep_
from sparsemask.spaces.group_sparsity.tracing.tracer import Tracer


def _resolved(node: Node, classes: np.ndarray, value: Callable) -> Node:
    is_product = node.makes is not None
    return replace(
        node,
        inputs=tuple(map(value, node.inputs)),
        outputs=tuple(map(value, node.outputs)),
        args=tree_map_only(Value, value, node.args),
        consumes=classes[node.consumes] if is_product else None,
        makes=classes[node.makes] if is_product else None,
        weight=value(node.weight),
        bias=value(node.bias),
    )


class ChannelGraph:
    """Every channel of a traced network as an *element*: channels that are removed together share one number.

    Elements are numbered 0 ... count - 1. Channels of the network's input and output, and of operators that the trace
    does not understand, are locked. Made by :func:`trace`; holds no tensors, valid for every network of the same
    structure.

    Attributes:
        count: number of elements.
        nodes: the convolutions and matrix products in order of execution, elements resolved.
        axes: by name of parameter or buffer: dimension -> elements along it.
        shape: of the input it was traced with.
    """

    def __init__(self, watched: Watched, shape: tuple[int, ...]):
        self._classes, self._reasons = watched.elements.resolve()
        self.shape = shape
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
        self.axes = {name: resolved(value).axes for name, value in watched.parameters.items() if value.axes}
        # A convolution's border (of a compressed network) is a product too, but not the one its name stands for.
        self._owned = {self.module_of(n): n for n in self.nodes if not n.weight.parameter.endswith(".border")}
        self._adaptable = {
            name: (before.axes[1], after.axes[1])
            for name, kind, before, after in self.calls
            if issubclass(kind, RemovesChannels) and before and after and 1 in before.axes and 1 in after.axes
        }

    def __deepcopy__(self, memo: dict):
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
        if module in self._owned and self._owned[module].weight.parameter:
            return self._owned[module].makes if dim == 0 else self._owned[module].consumes
        axes = self.axes.get(f"{module}.weight", {})
        if dim not in axes:
            raise UseError(f"'{module}' has no channels along dimension {dim} in the traced network")
        return axes[dim]

    def locked(self, elements: np.ndarray) -> np.ndarray:
        """Which elements can never be removed, bool of the shape of `elements`."""
        return self._locked[elements]

    def reason(self, element: int) -> str | None:
        """Reason why an element is locked; None if it is not."""
        return self._reasons[element]

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
        """Products without groups; only these create and consume channels, grouped ones pass them on."""
        return [node for node in self.nodes if node.groups == 1]

    def remove(self, network: nn.Module, gone: np.ndarray) -> nn.Module:
        """Remove channels in place: from weights, biases, buffers, channel and group numbers.

        Parameters stay the same objects. The contributions of removed channels are lost; see
        :func:`sparsemask.spaces.group_sparsity.compression.compress.compress`, which preserves the function. Modules
        with channel numbers of their own are notified by ``remove_channels(keep_in, keep_out)``
        (:class:`sparsemask.spaces.group_sparsity.tracing.record.RemovesChannels`).

        Args:
            network: the traced one or one of the same structure and shapes.
            gone: elements to remove, bool (count,) or their numbers.

        Returns:
            The network.

        Raises:
            UseError: a locked element, or a tensor that would lose all of its channels.
        """
        gone = self.as_mask(gone)
        if (bad := np.flatnonzero(gone & self._locked)).size:
            raise UseError(f"channel {bad[0]} of the graph cannot be removed: {self.reason(int(bad[0]))}")
        for name, axes in self.axes.items():
            for elements in axes.values():
                if len(elements) and gone[elements].all():
                    raise UseError(f"{name} would lose all of its channels; keep at least one")
        keep_(network, self.axes, ~gone)
        for name, (before, after) in self._adaptable.items():
            if gone[before].any() or gone[after].any():
                network.get_submodule(name).remove_channels(~gone[before], ~gone[after])
        return network

    def as_mask(self, gone: np.ndarray) -> np.ndarray:
        """bool (count,) from a mask or from numbers of elements."""
        gone = np.asarray(gone)
        if gone.dtype == bool:
            return gone
        mask = np.zeros(self.count, dtype=bool)
        mask[gone.astype(np.int64)] = True
        return mask


def trace(network: nn.Module, example: Tensor) -> ChannelGraph:
    """Run a network once in evaluation mode and record which channels depend on each other.

    Sums and products tie channels, concatenations join them, convolutions and linear layers make new ones, grouped
    convolutions tie whole groups, a flattened map repeats its channels. The network is not changed.

    Args:
        network: any network of convolutions.
        example: an input (B, C, ...).

    Returns:
        The channel graph.

    Raises:
        UseError: value-dependent control flow, weights that are used twice, a network without convolutions, or one that
            does not run on the input; the message names the module.
    """
    if not any(p.dim() > 2 for p in network.parameters()):
        raise UseError(f"{type(network).__name__} has no convolution: there is nothing to prune")
    watched = Tracer(network).run(example)
    _refuse_reuse(watched)
    graph = ChannelGraph(watched, tuple(example.shape))
    if not graph.nodes:
        raise UseError(f"{type(network).__name__} executed no convolution: there is nothing to prune")
    fixed = [(elements, why) for elements, why in watched.doubtful if not _follows(network, example, graph, elements)]
    for elements, reason in fixed:
        watched.elements.lock(elements, reason)
    return ChannelGraph(watched, tuple(example.shape)) if fixed else graph


def _refuse_reuse(watched: Watched) -> None:
    used = set()
    for name in (node.weight.parameter for node in watched.nodes if node.makes is not None):
        if name in used:
            module = name.rpartition(".")[0]
            raise UseError(f"module '{module}' is used twice: shared weights cannot be pruned; give each its own")
        used |= {name} - {""}  # computed weights have no name


def _follows(network: nn.Module, example: Tensor, graph: ChannelGraph, elements: np.ndarray) -> bool:
    """Whether a size written in the network's code still fits after removing a channel; tried on a copy."""
    classes = np.unique(graph._classes[elements])
    free = classes[~graph.locked(classes)]
    if not free.size or len(classes) < 2:
        return True
    trial = copy.deepcopy(network).eval()
    try:
        graph.remove(trial, free[:1])
        with torch.no_grad():
            trial(example)
    except (RuntimeError, ValueError, UseError):
        return False
    return True
