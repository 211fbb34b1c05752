"""One operator that ran, and what its rule may do: make, tie and lock elements, and ask which way channels go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_leaves

from sparsemask.spaces.group_sparsity.tracing import numbers
from sparsemask.spaces.group_sparsity.tracing.record import Contraction, Node, Site, Value

if TYPE_CHECKING:
    from sparsemask.spaces.group_sparsity.tracing.tracer import Tracer

Axes = dict[int, np.ndarray]
"""Dimension of a tensor -> elements along it."""


@dataclass(frozen=True)
class Call:
    """One operator that ran, as its rule sees it."""

    tracer: Tracer
    node: Node
    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    outputs: list[Tensor]

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Require that entry i of both are removed together."""
        self.tracer.elements.tie(a, b)

    def lock(self, elements: np.ndarray, why: str) -> None:
        """Forbid to remove these elements."""
        self.tracer.elements.lock(elements, f"{self.tracer.where()}: {why}")

    def fresh(self, count: int, why: str | None = None) -> np.ndarray:
        """New elements, locked if there is a reason."""
        return self.tracer.elements.fresh(count, why and f"{self.tracer.where()}: {why}")

    def statistics(self, elements: np.ndarray, why: str) -> None:
        """Statistics are taken over these elements: locked, or free where the function need not stay the same."""
        if self.tracer.free_statistics:
            self.tracer.elements.approximate(elements, f"{self.tracer.where()}: {why}")
        else:
            self.lock(elements, why)

    def sums(self, elements: np.ndarray, *places: tuple[int, int]) -> None:
        """The operator sums over these elements, which lie at `places`: (input, dimension)."""
        self.node.sums = (*self.node.sums, Contraction(elements, places))

    def tie_all(
        self, arrays: Sequence[np.ndarray | None], why: str | None, values: Sequence[Value] = ()
    ) -> np.ndarray | None:
        """Tie all known elements, and lock them if others are constants of fixed size; None if none are known.

        Args:
            arrays: elements of tensors of the same size, None where they are unknown.
            why: reason of the lock; None: no lock.
            values: the tensors. If all known elements are of parameters and a tensor that depends on the input has
                none, they are no channels (a table with an entry a position); they are locked and forgotten.
        """
        known = [elements for elements in arrays if elements is not None]
        for other in known[1:]:
            self.tie(known[0], other)
        if known and len(known) < len(arrays) and why:
            self.lock(known[0], why)
            pairs = [(value.varies, elements is None) for value, elements in zip(values, arrays, strict=bool(values))]
            if (True, True) in pairs and (True, False) not in pairs:
                return None
        return known[0] if known else None

    def channels(self, value: Value) -> np.ndarray:
        """Elements along a tensor's channels; a constant's are locked."""
        known = value.axes.get(1)
        return self.tracer.elements.fresh(value.shape[1], "it is a constant of fixed size") if known is None else known

    @property
    def handled(self) -> bool:
        """Whether a module is running that handles the removal of channels itself."""
        return any(name in self.tracer.handling for name, _ in self.tracer.running)

    @property
    def function(self) -> str:
        """Name of the torch function that was called; its operators run inside."""
        return self.tracer.call.name

    def sizes(self) -> list[int]:
        """The integers that the caller wrote: sizes, positions, numbers of parts."""
        return [leaf for leaf in tree_leaves(self.tracer.call.arguments) if isinstance(leaf, int)]

    def way(self, parts: Sequence[np.ndarray], ways: int, tried: bool = True) -> int:
        """The way that channels are taken to go here, 0 ... `ways`; `ways`: none, the rule must lock them.

        Args:
            parts: elements, in parts that could lose different numbers of channels.
            ways: number of ways, the preferred first.
            tried: whether sizes must be tried out.
        """
        tracer = self.tracer
        module, kind = tracer.running[-1] if tracer.running else ("", tracer.network)
        alike = f"{type(kind).__module__}.{type(kind).__qualname__}"
        if alike.startswith("torch.nn."):  # torch's own layers say nothing about each other
            alike = module
        key = (alike, self.node.op, tracer.next_site())
        way = min(tracer.ways.get(key, 0), ways)
        tracer.seen.sites.append(Site(key, len(tracer.seen.nodes), module, way, ways, tuple(parts), tried))
        return way

    def bind(self, *counted: np.ndarray) -> None:
        """Let the attributes from which the call's sizes were computed follow these elements."""
        self.bind_sizes(tree_leaves(_without_slices(self.tracer.call.arguments)), *counted)

    def bind_sizes(self, sizes: Sequence[object], *counted: np.ndarray) -> None:
        """Likewise for some of the sizes."""
        tags = [size for size in sizes if isinstance(size, numbers.Tagged)]
        self.tracer.seen.numbers += numbers.bind(tags, counted)


def _without_slices(tree: object) -> object:
    """Nested arguments with slices as tuples of their ends."""
    if isinstance(tree, slice):
        return tree.start, tree.stop, tree.step
    if isinstance(tree, tuple | list):
        return [_without_slices(branch) for branch in tree]
    if isinstance(tree, dict):
        return {key: _without_slices(branch) for key, branch in tree.items()}
    return tree
