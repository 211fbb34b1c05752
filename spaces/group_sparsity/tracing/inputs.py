"""Inputs of any structure: one tensor, several, keywords, nested, of floating-point values or integers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from sparsemask.errors import UseError
from sparsemask.spaces.group_sparsity.tracing.record import tensors_in

Example = Tensor | tuple | list | dict
"""A tensor; a tuple or list of positional arguments; a dict of keyword arguments; each may be nested."""


@dataclass(frozen=True)
class _Like:
    """Describes a tensor: what another one must be like to take its place."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    low: int = 0
    high: int = 0
    """Integers: the range of its entries, from which others are drawn."""

    @classmethod
    def of(cls, tensor: Tensor) -> _Like:
        counts = not (tensor.is_floating_point() or tensor.is_complex()) and tensor.numel()
        low, high = (int(tensor.min()), int(tensor.max())) if counts else (0, 0)
        return cls(tuple(tensor.shape), tensor.dtype, low, high)

    def draw(self, like: Tensor, generator: torch.Generator) -> Tensor:
        """Another tensor of this kind; floating-point ones become of the type of `like`."""
        if self.dtype.is_floating_point:
            return torch.randn(self.shape, generator=generator).to(like)
        if self.dtype.is_complex:
            return torch.randn(self.shape, dtype=self.dtype, generator=generator).to(like.device)
        drawn = torch.randint(self.low, self.high + 1, self.shape, generator=generator)
        return drawn.to(like.device, self.dtype)


@dataclass(frozen=True)
class Inputs:
    """The structure of a network's inputs, without their values.

    Attributes:
        tree: the example with descriptions in place of tensors.
        shape: of the first floating-point tensor, or of the first one.
    """

    tree: object
    shape: tuple[int, ...]

    @classmethod
    def of(cls, example: Example) -> Inputs:
        """Describe an example.

        Raises:
            UseError: it holds no tensor.
        """
        tensors = tensors_in(example)
        if not tensors:
            raise UseError(f"the example input is {type(example).__name__} without a tensor; give one or several")
        first = next((t for t in tensors if t.is_floating_point()), tensors[0])
        tree = tree_map(lambda leaf: _Like.of(leaf) if isinstance(leaf, Tensor) else leaf, example)
        return cls(tree, tuple(first.shape))

    def draw(self, like: Tensor, generator: torch.Generator) -> Example:
        """Random inputs of this structure: normal, or integers from the range that the example had.

        Args:
            like: gives the device and the floating-point type.
            generator: on the CPU.
        """
        return tree_map(lambda leaf: leaf.draw(like, generator) if isinstance(leaf, _Like) else leaf, self.tree)


def arguments(example: Example) -> tuple[tuple, dict]:
    """Positional and keyword arguments of a network's call."""
    if isinstance(example, dict):
        return (), example
    return (tuple(example), {}) if isinstance(example, tuple | list) else ((example,), {})


def shapes(example: Example) -> str:
    """The shapes in an example, for messages."""
    return ", ".join("x".join(map(str, t.shape)) or "1" for t in tensors_in(example))
