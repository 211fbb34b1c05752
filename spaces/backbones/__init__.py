"""Encoders, by name.

A backbone is a module with two attributes and one method, all ordered from the deepest feature:

- `channels`: channels of each end point; `strides`: how much smaller than the input each is;
- `forward(x)`: (B, C, H, W) -> list of end points E_0 ... E_{L-1}, before their activation.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from sparsemask.errors import choose

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}


def register(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Decorator: make `builder(in_channels=3, momentum=0.1, ...)` known by its own name."""
    _BUILDERS[builder.__name__] = builder
    return builder


def available() -> list[str]:
    """Names of all backbones."""
    return sorted(_BUILDERS)


def create(name: str, in_channels: int = 3, **options) -> nn.Module:
    """A new backbone with random weights; `options` (such as `momentum`) go to its builder."""
    choose(name, _BUILDERS, "backbone")
    return _BUILDERS[name](in_channels=in_channels, **options)


from spaces.backbones import mobilenet_v2 as _mobilenet_v2  # noqa: E402, F401  (registers itself)
