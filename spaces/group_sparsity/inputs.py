"""Inputs of any network, a tensor, several, or tensors by name, of numbers or integers; and their structure."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from sparsemask.errors import UseError

AnyInputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
"""A tensor, a tuple of positional arguments, or a mapping of keyword arguments; they may hold nested tensors."""

_MOST = 1 << 28  # entries of a tensor that a file may claim
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Inputs:
    """The arguments with which a network is called."""

    given: AnyInputs
    """As the user gave them."""

    @classmethod
    def of(cls, given: AnyInputs | Inputs, device: torch.device | None = None) -> Inputs:
        """Check inputs, and move their tensors.

        Args:
            given: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.
            device: where the tensors go; None: they stay.

        Raises:
            UseError: anything else, or inputs without a tensor.
        """
        given = given.given if isinstance(given, Inputs) else given
        if not isinstance(given, Tensor | tuple | Mapping):
            raise UseError(
                f"example: {type(given).__name__}; expected a tensor, a tuple of arguments or a dict of named ones"
            )
        if isinstance(given, tuple) and len(given) == 1 and isinstance(given[0], Tensor):
            given = given[0]
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(given)):
            raise UseError(f"example: {type(given).__name__} without a tensor")
        given = dict(given) if isinstance(given, Mapping) else given
        return cls(given if device is None else tree_map_only(Tensor, lambda t: t.to(device), given))

    def run(self, network: nn.Module) -> Any:
        """Call a network with them."""
        if isinstance(self.given, Tensor):
            return network(self.given)
        return network(*self.given) if isinstance(self.given, tuple) else network(**self.given)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors, in order."""
        return [leaf for leaf in tree_leaves(self.given) if isinstance(leaf, Tensor)]

    def __str__(self) -> str:
        """The shapes: '1x3x224x224', of several inputs with commas."""
        return ", ".join("x".join(map(str, t.shape)) or "scalar" for t in self.tensors)

    def structure(self) -> Structure:
        """Structure, shapes and types, from which other inputs can be drawn."""
        tensors = self.tensors
        first = next((t for t in tensors if t.is_floating_point()), tensors[0])
        return Structure(tree_map_only(Tensor, _Like.of, self.given), tuple(first.shape))

    def describe(self) -> dict[str, Any]:
        """The structure as values of JSON, from which :meth:`drawn` makes inputs of the same kind.

        Raises:
            UseError: arguments that JSON has no values for.
        """
        return _described(self.structure().tree)

    @classmethod
    def drawn(cls, description: object, like: Tensor | None = None) -> Inputs:
        """Draw inputs of what :meth:`describe` returned, perhaps from a file.

        Args:
            description: its result.
            like: gives the device, see :meth:`Structure.draw`.

        Raises:
            UseError: it describes no inputs.
        """
        try:
            tree = _read(description)
            leaves = [leaf for leaf in tree_leaves(tree) if isinstance(leaf, _Like)]
            return Structure(tree, leaves[0].shape).draw(like, torch.Generator().manual_seed(0))
        except (IndexError, KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError):
            raise UseError("the recipe's inputs are not readable") from None


@dataclass(frozen=True)
class Structure:
    """The structure of inputs, without their values.

    Attributes:
        tree: the inputs with descriptions in place of tensors.
        shape: of the first floating-point tensor, or of the first one.
    """

    tree: Any
    shape: tuple[int, ...]

    def draw(self, like: Tensor | None, generator: torch.Generator) -> Inputs:
        """Draw inputs of this structure: normal, or integers from the range that the example had.

        Args:
            like: gives the device, and floating-point tensors its type; None: the CPU, and types as described.
            generator: on the CPU.
        """
        return Inputs.of(tree_map_only(_Like, lambda leaf: leaf.draw(like, generator), self.tree))


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

    def draw(self, like: Tensor | None, generator: torch.Generator) -> Tensor:
        device = None if like is None else like.device
        if self.dtype.is_floating_point:
            drawn = torch.randn(self.shape, generator=generator)
            return drawn.to(device, self.dtype if like is None else like.dtype)
        if self.dtype.is_complex:
            return torch.randn(self.shape, dtype=self.dtype, generator=generator).to(device)
        return torch.randint(self.low, self.high + 1, self.shape, generator=generator).to(device, self.dtype)


def device_of_network(network: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU for a network without any."""
    return next((t.device for t in (*network.parameters(), *network.buffers())), torch.device("cpu"))


def _described(part: object) -> dict[str, Any]:
    if isinstance(part, _Like):
        entries = {"shape": list(part.shape), "type": str(part.dtype).removeprefix("torch.")}
        return {**entries, "range": [part.low, part.high]} if part.low or part.high else entries
    if isinstance(part, Mapping):
        return {"named": {str(name): _described(value) for name, value in part.items()}}
    if isinstance(part, tuple | list):
        return {"tuple" if isinstance(part, tuple) else "list": [_described(value) for value in part]}
    if isinstance(part, _PLAIN):
        return {"value": part}
    raise UseError(f"example: cannot be written to a file with a {type(part).__name__} in it")


def _read(description: Any) -> Any:
    if "shape" in description:
        shape = tuple(int(size) for size in description["shape"])
        if any(size <= 0 for size in shape) or math.prod(shape) > _MOST:
            raise ValueError(shape)
        low, high = (int(end) for end in description.get("range", (0, 0)))
        return _Like(shape, _TYPES[description["type"]], low, high)
    if "named" in description:
        return {str(name): _read(value) for name, value in description["named"].items()}
    for name, kind in (("tuple", tuple), ("list", list)):
        if name in description:
            return kind(_read(value) for value in description[name])
    if not isinstance(description["value"], _PLAIN):
        raise TypeError(description)
    return description["value"]


_TYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.uint8, torch.int8, torch.int16, torch.int32,
        torch.int64, torch.bool, torch.complex64,
    )
}  # fmt: skip
