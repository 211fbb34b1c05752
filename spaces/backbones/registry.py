"""What a backbone is, and how one of ours becomes known by its name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn


@runtime_checkable
class Backbone(Protocol):
    """A module that gives features of several sizes, all ordered from the deepest."""

    channels: Sequence[int]
    """Channels of each end point."""
    strides: Sequence[int]
    """How many times smaller than the input each end point is."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) to the end points E_0 ... E_{L-1}, before their activation (timm's: mostly after)."""


def is_backbone(module: object) -> bool:
    """Whether a module is a :class:`Backbone`, with as many channels as strides and at least one end point."""
    if not isinstance(module, nn.Module) or not isinstance(module, Backbone):
        return False
    return 0 < len(module.channels) == len(module.strides)


BUILDERS: dict[str, Callable[..., nn.Module]] = {}
"""What builds a backbone, by its name."""


def register(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Decorator: make `builder(in_channels=3, momentum=0.1, ...)` known by its own name."""
    BUILDERS[builder.__name__] = builder
    return builder
