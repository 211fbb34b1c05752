"""Whether sizes written in a network's code still fit when channels are removed: tried out on a copy.

A random part of the channels is removed from a copy, and its run is compared with the traced one operator by operator:
every tensor must have just the channels that remain, and operators that move entries must move each of them where it
went before. A size that fits by chance is not enough.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence, Set
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn
from torch._ops import OpOverload
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from sparsemask.spaces.group_sparsity.inputs import Inputs
from sparsemask.spaces.group_sparsity.tracing.duplicate import duplicate
from sparsemask.spaces.group_sparsity.tracing.moves import RESHAPES, moved
from sparsemask.spaces.group_sparsity.tracing.operators import ELEMENTWISE, MOVES
from sparsemask.spaces.group_sparsity.tracing.operators import scalars as _scalars
from sparsemask.spaces.group_sparsity.tracing.record import Node, Site, operator_name, tensors_in
from sparsemask.spaces.group_sparsity.tracing.sparing import spared
from sparsemask.timing import evaluating

if TYPE_CHECKING:
    from sparsemask.spaces.group_sparsity.tracing.graph import ChannelGraph

# Share of the channels that is removed.
_SHARE = 0.4

Key = tuple[str, str, int]


class SamePath(TorchFunctionMode):
    """Lets modules with a fused fast path for inference take the one that they took while they were traced."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class _Misfit(Exception):
    """An operator of the copy does not do what it did in the traced network."""


class Replay(TorchDispatchMode):
    """Runs a traced network again, operator by operator.

    Attributes:
        graph: its channels.
        step: number of the next operator.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is ever compiled, and torch would import its compiler (seconds) to say so

    def __init__(self, graph: ChannelGraph):
        super().__init__()
        self.graph, self.step = graph, 0

    def traced(self, func: OpOverload) -> Node | None:
        """The operator that ran at this step of the trace; None where it was another one."""
        node = self.graph.all_nodes[self.step] if self.step < len(self.graph.all_nodes) else None
        return node if node is not None and node.op == operator_name(func) else None


class _Comparison(Replay):
    """Runs a network without some channels and compares every operator with the traced one."""

    def __init__(self, graph: ChannelGraph, alive: np.ndarray, spare: bool):
        super().__init__(graph)
        self.alive, self.spare = alive, spare

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        node, kwargs = self.traced(func), kwargs or {}
        if node is None:
            raise _Misfit
        output = spared(node.op, args, node.varies) if self.spare and not kwargs else None
        if output is None:
            output = func(*args, **kwargs)
        outputs = tensors_in(output)
        if len(outputs) != len(node.outputs):
            raise _Misfit
        for tensor, value in zip(outputs, node.outputs, strict=True):
            if value.axes and tuple(tensor.shape) != self._shape(value.shape, value.axes):
                raise _Misfit
        if node.op in ELEMENTWISE and _scalars(args) != _scalars(node.args):
            raise _Misfit  # a factor that was computed from the number of channels
        if node.op in MOVES:
            self._compare(node, func, args, kwargs)
        if node.op == "native_group_norm" and 1 in node.inputs[0].axes:
            before = node.inputs[0].axes[1].reshape(node.args[6], -1)
            if args[6] != int(self.alive[before].any(1).sum()):
                raise _Misfit
        self.step += 1
        return output

    def _shape(self, shape: tuple[int, ...], axes: dict[int, np.ndarray]) -> tuple[int, ...]:
        return tuple(int(self.alive[axes[d]].sum()) if d in axes else size for d, size in enumerate(shape))

    def _compare(self, node: Node, func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Whether the remaining entries are moved where they went in the traced network."""
        before = node.inputs[0]
        shape = tuple(tensors_in(args)[0].shape)
        for dim, elements in before.axes.items():
            if self.alive[elements].all() or self.graph.locked(elements).all():
                continue
            kept = elements[self.alive[elements]]
            for result, value in zip(moved(func, args, kwargs, kept, dim, shape), node.outputs, strict=True):
                if not any(result.lies(d, e[self.alive[e]]) for d, e in value.axes.items()):
                    raise _Misfit


def failing(
    network: nn.Module,
    inputs: Inputs,
    graph: ChannelGraph,
    sites: Sequence[Site],
    fixed: Set[str | int] = frozenset(),
    spare: bool = True,
) -> set[Key | str | int]:
    """The places whose sizes do not follow the channels; found one after the other, so that one run names a few.

    Where there is no choice, channels must stay: the number of an operator stands for those of its inputs, a module's
    name for those of its input (a tensor without channels gets a size that was taken from there).

    Args:
        network: the traced one.
        inputs: those it was traced with.
        graph: its channels as they are supposed to go.
        sites: the places that must be tried out.
        fixed: numbers of operators and names of modules whose inputs' channels are locked already.
        spare: whether products need not be computed, and the copy may share parameters.
    """
    gone = _chosen(graph, sites)
    if not gone.any():
        return set()
    copied = duplicate(network) if spare else copy.deepcopy(network)
    graph.remove(copied, gone, hollow=True)
    comparison = _Comparison(graph, ~gone, spare)
    try:
        with evaluating(copied), comparison, SamePath():
            inputs.run(copied)
    except Exception:  # whatever a user's network raises on sizes that do not fit
        return _blamed(graph, sites, comparison.step, fixed)
    return set()


def useless(graph: ChannelGraph, sites: Sequence[Site]) -> set[Key]:
    """The places where another way is possible and the one taken leaves no channel that could be removed.

    Those that need no trial come first: a view may be useless only because of a grouped convolution beside it.
    """
    keys: dict[bool, set[Key]] = {False: set(), True: set()}
    for site in sites:
        if site.way + 1 < site.ways:
            classes = np.unique(graph.resolved(np.concatenate(site.parts)))
            if (~graph.locked(classes)).sum() < 2:
                keys[site.tried].add(site.key)
    return keys[False] or keys[True]


def _chosen(graph: ChannelGraph, sites: Sequence[Site]) -> np.ndarray:
    """Channels to remove, bool (count,): a random part of all, some of each part that may go alone."""
    generator = np.random.default_rng(0)
    gone = (generator.random(graph.count) < _SHARE) & ~graph.locked(np.arange(graph.count))
    for site in sites:
        for part in site.parts:
            classes = np.unique(graph.resolved(part))
            free = classes[~graph.locked(classes)]
            if free.size and not gone[free].any():
                gone[generator.choice(free)] = True
    return graph.spared(gone)


def _blamed(graph: ChannelGraph, sites: Sequence[Site], step: int, fixed: Set[str | int]) -> set[Key | str | int]:
    """The place to blame for a failure at an operator: itself, else one of its module, else the last one before."""
    following = graph.all_nodes[step : step + 2]
    if len(following) == 2 and following[0].op == "clone" and following[1].op in RESHAPES:
        step += 1  # a reshape that needs a copy checks its sizes before
    node = graph.all_nodes[min(step, len(graph.all_nodes) - 1)]
    here = [site for site in sites if site.step == step]
    free = any(not graph.locked(e).all() for value in node.inputs for e in value.axes.values())
    if node.op in RESHAPES and not here and not free and node.module not in fixed:
        return {node.module}
    near = [site for site in sites if site.module == node.module and site.step >= step][:1]
    inside = [site for site in sites if site.module == node.module][-1:]
    before = [site for site in sites if site.step < step][-1:]
    blamed = here or near or inside or (before if step not in fixed and not free else [])
    if blamed:
        return {site.key for site in blamed}
    if step not in fixed and free:
        return {step}
    return {node.module} if node.module not in fixed else {site.key for site in sites} or {step}
