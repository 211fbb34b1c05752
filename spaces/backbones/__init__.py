"""Encoders by name: built-in ones, feature models of timm (the extra `timm`) and a user's own.

:class:`Backbone` is their contract.
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
    """A module that returns features at several scales, deepest first."""

    channels: Sequence[int]
    """Channels of each end point, deepest first."""
    strides: Sequence[int]
    """Input size over the size of each end point, deepest first."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Compute the end points.

        Args:
            x: (B, C, H, W).

        Returns:
            End points E_0 ... E_{L-1}, before their activation (timm's mostly after it).
        """


def is_backbone(module: object) -> bool:
    """Whether a module is a :class:`Backbone` with at least one end point and as many channels as strides."""
    if not isinstance(module, nn.Module) or not isinstance(module, Backbone):
        return False
    return 0 < len(module.channels) == len(module.strides)


_BUILDERS: dict[str, Callable[..., nn.Module]] = {}


def register(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Register a backbone under its function's name; usable as a decorator.

    Args:
        builder: called as ``builder(in_channels=3, momentum=0.1, ...)``; returns a :class:`Backbone`.

    Returns:
        The builder itself.
    """
    _BUILDERS[builder.__name__] = builder
    return builder


def available() -> list[str]:
    """Return the names of the registered backbones, sorted; :func:`builder` accepts timm's too."""
    return sorted(_BUILDERS)


def builder(name: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Return the function that builds a backbone.

    Args:
        name: a registered name, a user's ``package.module:callable``, a timm model (with or without "timm/"), or the
            user's class or function itself.

    Raises:
        UseError: unknown name, or code that the user has not named on the command line (see :mod:`sparsemask.plugins`).
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
    """Wrap a user's builder: pass only the arguments that it accepts and check what it returns."""
    parameters = inspect.signature(make).parameters

    def build(**options) -> nn.Module:
        module = make(**{key: value for key, value in options.items() if key in parameters})
        if not is_backbone(module):
            raise UseError(
                f"backbone '{name}': expected a torch.nn.Module with `channels` and `strides`, one an end point, "
                "deepest first"
            )
        return module

    return build


def create(name: str | Callable[..., nn.Module], in_channels: int = 3, **options) -> nn.Module:
    """Build a backbone with random weights.

    Args:
        name: as for :func:`builder`.
        in_channels: channels of the input image.
        options: further arguments of the builder, such as `momentum`.

    Raises:
        UseError: as :func:`builder`, or a user's builder that returns no backbone.
    """
    return builder(name)(in_channels=in_channels, **options)


def strides(name: str | Callable[..., nn.Module]) -> list[int]:
    """Return the strides of a backbone's end points, deepest first; built on the meta device."""
    with torch.device("meta"):
        return list(create(name).strides)


from sparsemask.spaces.backbones import mobilenet_v2 as _mobilenet_v2  # noqa: E402, F401  (registers itself)
