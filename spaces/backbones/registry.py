"""The contract of a backbone, and the table of backbones by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Backbone(Protocol):
    """A module that returns features at several scales, deepest first."""

    channels: Sequence[int]
    """Channels of each end point, deepest first."""
    strides: Sequence[int]
    """Input size over the size of each end point, deepest first."""

    def forward(self, x: Tensor) -> list[Tensor] | list[Tensor | None]:
        """Compute the end points.

        Args:
            x: (B, C, H, W).

        Returns:
            End points E_0 ... E_{L-1}, before their activation (timm's mostly after it); None for those that a
            truncated backbone does not compute (:func:`sparsemask.spaces.backbones.truncate_`).
        """


def is_backbone(module: object) -> bool:
    """Whether a module is a :class:`Backbone` with at least one end point and as many channels as strides."""
    if not isinstance(module, nn.Module) or not isinstance(module, Backbone):
        return False
    return 0 < len(module.channels) == len(module.strides)


BUILDERS: dict[str, Callable[..., nn.Module]] = {}
"""What builds a backbone, by its name."""


def register(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Register a backbone under its function's name; usable as a decorator.

    Args:
        builder: called as ``builder(in_channels=3, momentum=0.1, ...)``; returns a :class:`Backbone`.

    Returns:
        The builder itself.
    """
    BUILDERS[builder.__name__] = builder
    return builder
