"""Encoders, by name: our own, and through the extra `timm` any of its models that give features.

A backbone is a module with two attributes and one method, all ordered from the deepest feature:

- `channels`: channels of each end point; `strides`: how much smaller than the input each is;
- `forward(x)`: (B, C, H, W) -> list of end points E_0 ... E_{L-1}, before their activation (timm's: mostly after).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

_BUILDERS: dict[str, Callable[..., nn.Module]] = {}


def register(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Decorator: make `builder(in_channels=3, momentum=0.1, ...)` known by its own name."""
    _BUILDERS[builder.__name__] = builder
    return builder


def available() -> list[str]:
    """Names of our own backbones; :func:`builder` knows timm's too."""
    return sorted(_BUILDERS)


def builder(name: str) -> Callable[..., nn.Module]:
    """What builds backbone `name`: ours, else timm's (with or without "timm/" before it); UseError otherwise."""
    if name in _BUILDERS:
        return _BUILDERS[name]
    from spaces.backbones.timm_features import timm_builder

    return timm_builder(name, available())


def create(name: str, in_channels: int = 3, **options) -> nn.Module:
    """A new backbone with random weights; `options` (such as `momentum`) go to its builder."""
    return builder(name)(in_channels=in_channels, **options)


def strides(name: str) -> list[int]:
    """The strides of a backbone's end points, deepest first; nothing is computed."""
    with torch.device("meta"):
        return list(create(name).strides)


from spaces.backbones import mobilenet_v2 as _mobilenet_v2  # noqa: E402, F401  (registers itself)
