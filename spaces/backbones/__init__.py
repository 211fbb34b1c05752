"""Encoders, by name: our own, through the extra `timm` any of its models that give features, and a user's own.

What a backbone is, :class:`Backbone` says.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.plugins import imported, is_own


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


_BUILDERS: dict[str, Callable[..., nn.Module]] = {}


def register(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Decorator: make `builder(in_channels=3, momentum=0.1, ...)` known by its own name."""
    _BUILDERS[builder.__name__] = builder
    return builder


def available() -> list[str]:
    """Names of our own backbones; :func:`builder` knows timm's too."""
    return sorted(_BUILDERS)


def builder(name: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """What builds backbone `name`: ours, a user's ``package.module:callable``, or timm's (with or without "timm/").

    name: or the user's class or function itself. UseError otherwise, and for code that the user has not named (see
    :mod:`sparsemask.plugins`).
    """
    if callable(name):
        return _own(name.__qualname__ if isinstance(name, type | FunctionType) else repr(name), name)
    if not isinstance(name, str):
        raise UseError(f"a backbone is said by its name, not by {name!r:.80}")
    if name in _BUILDERS:
        return _BUILDERS[name]
    if is_own(name):
        return _own(name, imported(name, "backbone"))
    from sparsemask.spaces.backbones.timm_features import timm_builder

    return timm_builder(name, available())


def _own(name: str, make: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """A user's builder, which is given those arguments that it takes; what it returns is looked at."""
    taken = inspect.signature(make).parameters

    def build(**options) -> nn.Module:
        made = make(**{key: value for key, value in options.items() if key in taken})
        if not is_backbone(made):
            raise UseError(
                f"backbone '{name}': expected a torch.nn.Module with `channels` and `strides`, one an end point, "
                "deepest first"
            )
        return made

    return build


def create(name: str | Callable[..., nn.Module], in_channels: int = 3, **options) -> nn.Module:
    """A new backbone with random weights; `options` (such as `momentum`) go to its builder."""
    return builder(name)(in_channels=in_channels, **options)


def strides(name: str | Callable[..., nn.Module]) -> list[int]:
    """The strides of a backbone's end points, deepest first; nothing is computed."""
    with torch.device("meta"):
        return list(create(name).strides)


from sparsemask.spaces.backbones import mobilenet_v2 as _mobilenet_v2  # noqa: E402, F401  (registers itself)
