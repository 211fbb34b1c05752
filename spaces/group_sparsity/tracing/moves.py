"""Where an operator that only moves entries puts the elements along one dimension.

The operator is repeated with the elements' numbers in place of the entries. Numbers are the same along all other
dimensions; these have one entry each wherever the operator allows, so that a map costs no more than its channels.
"""

from __future__ import annotations

import itertools
import math
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sparsemask.spaces.group_sparsity.tracing.record import tensors_in

RESHAPES = frozenset({"view", "_unsafe_view", "reshape", "_reshape_alias"})
# They do to each entry along other dimensions the same, however many there are.
_INDEPENDENT = {"roll", "flip", "repeat"}
_SHUFFLES = {"channel_shuffle", "native_channel_shuffle"}


@dataclass(frozen=True)
class Moved:
    """Numbers of elements in one result of an operator.

    Attributes:
        shape: of the result.
        numbers: int64, of the same rank, with one entry along dimensions along which numbers are the same.
        dims: those along which they change.
    """

    shape: tuple[int, ...]
    numbers: np.ndarray
    dims: tuple[int, ...]

    @classmethod
    def of(cls, numbers: np.ndarray, shape: Sequence[int]) -> Moved:
        """From numbers that may still be repeated along dimensions."""
        dims = []
        for dim in range(numbers.ndim):
            if numbers.shape[dim] < 2:
                continue
            first = numbers[(slice(None),) * dim + (slice(1),)]
            if (numbers != first).any():
                dims.append(dim)
            else:
                numbers = first
        return cls(tuple(shape), numbers, tuple(dims))

    @property
    def empty(self) -> bool:
        """Whether the result has no entries, and so no numbers."""
        return 0 in self.shape

    def along(self, before: int, elements: np.ndarray) -> tuple[int, np.ndarray] | None:
        """The single dimension along which numbers change, and the numbers; None if there are several.

        An empty result has no numbers: what lies along the dimension that channels had is all of them, or none.

        Args:
            before: the dimension along which they lay.
            elements: the numbers along it.
        """
        rank = len(self.shape)
        if self.empty:
            fits = before < rank and self.shape[before] in (0, len(elements))
            return (before, elements[: self.shape[before]].copy()) if fits else None
        if len(self.dims) > 1 or rank == 0:
            return None
        dim = self.dims[0] if self.dims else min(before, rank - 1)
        return dim, self.rows(dim)[:, 0].copy()

    def rows(self, dim: int) -> np.ndarray:
        """Numbers that lie at the same place along a dimension, (size of the dimension, places)."""
        rows = self.numbers.swapaxes(dim, 0).reshape(self.numbers.shape[dim], -1)
        return rows if len(rows) == self.shape[dim] else np.broadcast_to(rows, (self.shape[dim], rows.shape[1]))

    def lies(self, dim: int, elements: np.ndarray) -> bool:
        """Whether just these elements lie along a dimension, at every place."""
        if len(self.shape) <= dim or self.shape[dim] != len(elements):
            return False
        return self.empty or (set(self.dims) <= {dim} and bool((self.rows(dim)[:, 0] == elements).all()))


def moved(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    elements: np.ndarray,
    dim: int,
    shape: Sequence[int],
) -> list[Moved]:
    """Results of an operator on element numbers in place of entries.

    Args:
        func: the operator.
        args: its arguments; the first is the tensor of the entries.
        kwargs: its keyword arguments.
        elements: numbers along one dimension of that tensor.
        dim: the dimension.
        shape: the tensor's.
    """
    name = func.overloadpacket.__name__  # type: ignore[attr-defined]
    if name in RESHAPES and _product(shape):
        return [_reshaped(elements, dim, shape, args[1])]
    numbers = torch.from_numpy(elements).view([-1 if d == dim else 1 for d in range(len(shape))])
    thin = name in _INDEPENDENT or (name in _SHUFFLES and dim == 1)
    others = [other.cpu() if isinstance(other, Tensor) else other for other in args[1:]]
    results = tensors_in(func(numbers if thin else numbers.expand(*shape), *others, **kwargs))
    if not thin:
        return [_reduced(result) for result in results]
    return [Moved.of(result.numpy(), _full(result.shape, dim, shape)) for result in results]


def _full(thin: Sequence[int], dim: int, shape: Sequence[int]) -> list[int]:
    """The shape of a result of which all dimensions but one had one entry before, from what it is then."""
    whole = [1 if d == dim else size for d, size in enumerate(shape)]
    return [a * b for a, b in zip(thin, [1] * (len(thin) - len(whole)) + whole, strict=True)]


def _product(sizes: Iterable[int]) -> int:
    return math.prod(map(int, sizes))


def _reduced(result: Tensor) -> Moved:
    """The same, quickly: what was expanded has strides of zero."""
    shape = tuple(result.shape)
    if result.numel():
        for d in range(result.dim()):
            if not result.stride(d) and shape[d] > 1:
                result = result.narrow(d, 0, 1)
    return Moved.of(result.numpy(), shape)


def _reshaped(elements: np.ndarray, dim: int, shape: Sequence[int], sizes: Sequence[int]) -> Moved:
    """A reshape, of which dimensions matter that are merged with this one or split from it."""
    sizes = [int(size) for size in sizes]
    rest = _product(size for size in sizes if size >= 0)
    sizes = [_product(shape) // rest if size < 0 else size for size in sizes]
    before, after = ([*itertools.accumulate(s, operator.mul, initial=1)] for s in (shape, sizes))
    start = max(d for d in range(dim + 1) if before[d] in after)
    end = min(d for d in range(dim + 1, len(shape) + 1) if before[d] in after)
    first = after.index(before[start])
    last = len(sizes) - after[::-1].index(before[end])
    group = elements.reshape([-1 if d == dim else 1 for d in range(start, end)])
    numbers = np.broadcast_to(group, tuple(shape[start:end])).reshape(sizes[first:last])
    return Moved.of(numbers.reshape([1] * first + sizes[first:last] + [1] * (len(sizes) - last)), sizes)
