"""Encoders, by name: our own, through the extra `timm` any of its models that give features, and a user's own.

What a backbone is, :class:`Backbone` says. Every module of this folder is loaded, so that a backbone is one file.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from importlib import import_module
from types import FunctionType

import torch
from torch import nn

from sparsemask.errors import UseError
from sparsemask.plugins import imported, is_own
from sparsemask.spaces.backbones.registry import BUILDERS, Backbone, is_backbone, register

__all__ = ["Backbone", "available", "builder", "create", "is_backbone", "register", "strides"]


def available() -> list[str]:
    """Names of our own backbones; :func:`builder` knows timm's too."""
    return sorted(BUILDERS)


def builder(name: str | Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """What builds backbone `name`: ours, a user's ``package.module:callable``, or timm's (with or without "timm/").

    name: or the user's class or function itself. UseError otherwise, and for code that the user has not named (see
    :mod:`sparsemask.plugins`).
    """
    if callable(name):
        return _own(name.__qualname__ if isinstance(name, type | FunctionType) else repr(name), name)
    if not isinstance(name, str):
        raise UseError(f"a backbone is said by its name, not by {name!r:.80}")
    if name in BUILDERS:
        return BUILDERS[name]
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


for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
