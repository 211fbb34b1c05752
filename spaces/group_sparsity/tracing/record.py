"""What tracing a network records: channel elements, the tensors that carry them, and the operators that ran."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from scipy.sparse import coo_matrix  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves


class Elements:
    """A growing set of channels. Ties and locks are collected first and resolved together at the end."""

    def __init__(self) -> None:
        self.count = 0
        self._ties: list[tuple[np.ndarray, np.ndarray]] = []
        self._locks: list[tuple[np.ndarray, str]] = []
        self._approximations: list[tuple[np.ndarray, str]] = []

    def fresh(self, count: int, reason: str | None = None) -> np.ndarray:
        """Create `count` elements and return their numbers, (count,) int64; locked if a reason is given."""
        numbers = np.arange(self.count, self.count + count)
        self.count += count
        if reason:
            self.lock(numbers, reason)
        return numbers

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Require that entry i of `a` and entry i of `b` are removed together; either may be a single element."""
        if a.shape != b.shape:
            a, b = np.broadcast_arrays(a, b)
        self._ties.append((a.ravel(), b.ravel()))

    def lock(self, elements: np.ndarray, reason: str) -> None:
        """Forbid to remove these elements; of several reasons the first is reported."""
        self._locks.append((np.asarray(elements), reason))

    def approximate(self, elements: np.ndarray, reason: str) -> None:
        """Note that removing these elements changes the function, since statistics are taken over them."""
        self._approximations.append((np.asarray(elements), reason))

    def resolve(self) -> tuple[np.ndarray, list[str | None], list[str | None]]:
        """Return the class of every element, (count,) int64 from 0, and two lists of a reason or None for every class:
        why it is locked, and why its removal changes the function."""
        if self._ties:
            a, b = (np.concatenate(side) for side in zip(*self._ties, strict=True))
        else:
            a = b = np.zeros(0, np.int64)
        links = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(self.count, self.count))
        number, classes = connected_components(links, directed=False)
        locked, approximate = (_first(entries, classes, number) for entries in (self._locks, self._approximations))
        return classes.astype(np.int64), locked, approximate


def _first(entries: list[tuple[np.ndarray, str]], classes: np.ndarray, count: int) -> list[str | None]:
    """The first reason that was given for each class."""
    reasons: list[str | None] = [None] * count
    for elements, reason in reversed(entries):
        for c in np.unique(classes[elements]):
            reasons[c] = reason
    return reasons


@dataclass
class Value:
    """A tensor at one point of the run: its shape and, for some dimensions, the elements along them."""

    number: int
    shape: tuple[int, ...]
    axes: dict[int, np.ndarray]
    varies: bool
    """Whether it depends on the network's input."""
    parameter: str = ""
    """Its name, if it is a parameter or buffer of the network."""
    uniform: frozenset[int] = frozenset()
    """Dimensions along which it was expanded from one entry, so that it fits any number of channels."""


@dataclass(frozen=True)
class Contraction:
    """A sum over channels without weights of its own: exact without a channel that is zero in one of its terms."""

    elements: np.ndarray
    places: tuple[tuple[int, int], ...]
    """(input of the operator, its dimension): where they lie."""


@dataclass
class Node:
    """One operator that ran."""

    op: str
    module: str
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    args: tuple[Any, ...] = ()
    """Arguments as they were, tensors replaced by their Value."""
    named: tuple[str, ...] = ()
    """Names of the keyword arguments."""
    consumes: np.ndarray | None = None
    """Convolutions and matrix products: elements along the input's channels."""
    makes: np.ndarray | None = None
    """Likewise the output's."""
    groups: int = 1
    inside: bool = False
    """Grouped convolutions: whether every group loses the same channels; otherwise whole groups are removed."""
    weight: Value | None = None
    bias: Value | None = None
    uniform: frozenset[int] = frozenset()
    """Dimensions of the output that were expanded from one entry."""
    sums: tuple[Contraction, ...] = ()
    """Sums over channels, to which a removed channel must contribute nothing."""

    @property
    def varies(self) -> bool:
        """Whether its results depend on the network's input."""
        return any(value.varies for value in self.outputs)

    @property
    def mixes(self) -> bool:
        """Products: whether it makes new channels; a grouped one that loses whole groups only passes them on."""
        return self.makes is not None and (self.groups == 1 or self.inside)

    @property
    def border(self) -> bool:
        """Products: whether it adds the border of a convolution of a compressed network, which makes no channels."""
        return self.weight is not None and self.weight.parameter.endswith(".border")

    @property
    def is_batch_norm(self) -> bool:
        """Whether it normalises by a batch's or by running statistics."""
        return self.op.endswith("batch_norm") or self.op.startswith("_batch_norm")

    @property
    def running_mean(self) -> str:
        """Name of a batch norm's running mean; empty for other operators, and where it has none of its own."""
        names = (value.parameter for value in self.inputs[1:] if self.is_batch_norm)
        return next((name for name in names if name.endswith("running_mean")), "")

    @property
    def transposed(self) -> bool:
        """Whether it is a transposed convolution."""
        return self.op == "convolution" and self.args[6]

    @property
    def input_dim(self) -> int:
        """Products: the dimension of the weight's input channels, as the operator is given it."""
        return int(self.op == "convolution" and not self.transposed)


@dataclass(frozen=True)
class Counted:
    """An attribute that counts channels, perhaps of several tensors, which then lose equally many."""

    module: str
    attribute: str
    index: int | None


@dataclass(frozen=True)
class Number:
    """A number of channels that a module keeps as an attribute and that must follow when channels are removed."""

    module: str
    attribute: str
    index: int | None
    """Position in the attribute, if that is a tuple or list."""
    elements: np.ndarray
    """The channels that it counts."""

    @property
    def key(self) -> Counted:
        """The attribute."""
        return Counted(self.module, self.attribute, self.index)


@dataclass(frozen=True)
class Site:
    """An operator whose sizes are written in the code, and the way in which channels are taken to go there.

    Whether the sizes follow the channels is tried out on a copy. Several ways may be possible: a map split into
    (heads, width) can lose heads or lose width; the later ones are taken if the earlier ones fail.
    """

    key: tuple[str, str, int]
    """Class of the module (the name of one of torch's own layers), operator, its place in the module's forward: sites
    alike are decided alike."""
    step: int
    """Number of its node."""
    module: str
    way: int
    """The way that was taken; `ways`: none, its channels are locked."""
    ways: int
    parts: tuple[np.ndarray, ...]
    """Elements, in parts that could lose different numbers of channels."""
    tried: bool
    """Whether sizes must be tried out; otherwise it only chooses between ways."""


@dataclass
class Watched:
    """The record of a run."""

    elements: Elements
    nodes: list[Node]
    calls: list[tuple[str, nn.Module, Value | None, Value | None]]
    """Modules in call order, with their first input and output tensor."""
    parameters: dict[str, Value]
    sites: list[Site] = field(default_factory=list)
    numbers: list[Number] = field(default_factory=list)
    written: bool = False
    """Whether numbers may have been taken from other tensors: sizes of a tensor without channels, factors."""


@functools.cache
def operator_name(func: OpOverload) -> str:
    """The name of an operator, the same whether it works in place or not."""
    name: str = func.overloadpacket.__name__
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


_NESTS = frozenset({tuple, list})
_LEAVES = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format})


def tensors_in(tree: Any) -> list[Tensor]:
    """The tensors in nested arguments or outputs."""
    if isinstance(tree, Tensor):
        return [tree]
    if type(tree) not in _NESTS:
        return [] if type(tree) in _LEAVES else [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
    found: list[Tensor] = []  # as all operators have them; quicker than what knows every container
    for branch in tree:
        if type(branch) not in _LEAVES:
            found += tensors_in(branch)
    return found


def replaced(tree: Any, kind: type, function: Callable[[Any], object]) -> Any:
    """Nested arguments of an operator, its leaves of one kind replaced."""
    if isinstance(tree, kind):
        return function(tree)
    if type(tree) in _NESTS:
        return type(tree)([branch if type(branch) in _LEAVES else replaced(branch, kind, function) for branch in tree])
    return tree


@runtime_checkable
class RemovesChannels(Protocol):
    """A module with channel numbers of its own that can update them when channels are removed."""

    def remove_channels(self, keep_in: np.ndarray, keep_out: np.ndarray) -> None:
        """Keep some channels.

        Args:
            keep_in: bool (input channels,).
            keep_out: bool (output channels,).
        """
