"""Example inputs of any network: a tensor, several, or tensors by name."""

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
    """As the user gave them; :func:`sparsemask.spaces.group_sparsity.tracing.graph.trace` takes the same."""

    @classmethod
    def of(cls, given: AnyInputs, device: torch.device | None = None) -> Inputs:
        """Check inputs, and move their tensors.

        Args:
            given: a tensor, a tuple of positional arguments, or a mapping of keyword arguments.
            device: where the tensors go; None: they stay.

        Raises:
            UseError: anything else, or inputs without a tensor.
        """
        if not isinstance(given, Tensor | tuple | Mapping):
            raise UseError(
                f"example: {type(given).__name__}; expected a tensor, a tuple of arguments or a dict of named ones"
            )
        if isinstance(given, tuple) and len(given) == 1 and isinstance(given[0], Tensor):
            given = given[0]
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(given)):
            raise UseError("example: no tensor among the inputs")
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

    def describe(self) -> dict[str, Any]:
        """Shapes and types as values of JSON, from which :meth:`drawn` makes inputs of the same kind."""
        return _described(self.given)

    @classmethod
    def drawn(cls, description: object, device: torch.device | None = None) -> Inputs:
        """Make inputs of zeros from what :meth:`describe` returned, perhaps from a file.

        Raises:
            UseError: it describes no inputs.
        """
        try:
            return cls.of(_drawn(description), device)
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, RecursionError):
            raise UseError("the recipe's inputs are not readable") from None


def device_of_network(network: nn.Module) -> torch.device:
    """The device of the first parameter or buffer; the CPU for a network without any."""
    return next((t.device for t in (*network.parameters(), *network.buffers())), torch.device("cpu"))


def _described(part: object) -> dict[str, Any]:
    if isinstance(part, Tensor):
        return {"shape": list(part.shape), "type": str(part.dtype).removeprefix("torch.")}
    if isinstance(part, Mapping):
        return {"named": {str(name): _described(value) for name, value in part.items()}}
    if isinstance(part, tuple | list):
        return {"tuple" if isinstance(part, tuple) else "list": [_described(value) for value in part]}
    if isinstance(part, _PLAIN):
        return {"value": part}
    raise UseError(f"example: cannot be written to a file with a {type(part).__name__} in it")


def _drawn(description: Any) -> Any:
    if "shape" in description:
        shape = [int(size) for size in description["shape"]]
        if any(size <= 0 for size in shape) or math.prod(shape) > _MOST:
            raise ValueError(shape)
        return torch.zeros(shape, dtype=_TYPES[description["type"]])
    if "named" in description:
        return {str(name): _drawn(value) for name, value in description["named"].items()}
    for name, kind in (("tuple", tuple), ("list", list)):
        if name in description:
            return kind(_drawn(value) for value in description[name])
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
