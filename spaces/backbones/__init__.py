"""Encoders by name: built-in ones, feature models of timm (the extra `timm`) and a user's own.

:class:`Backbone` is their contract. Every module of this folder is loaded, so that a backbone is one file.
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable
from importlib import import_module
from types import FunctionType

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from sparsemask.errors import UseError
from sparsemask.plugins import imported, is_own
from sparsemask.spaces.backbones.registry import BUILDERS, Backbone, is_backbone, register
from sparsemask.spaces.backbones.truncation import Truncatable, truncate_

__all__ = [
    "Backbone",
    "Truncatable",
    "available",
    "builder",
    "create",
    "is_backbone",
    "register",
    "strides",
    "truncate_",
]


def available() -> list[str]:
    """Return the names of the registered backbones, sorted; :func:`builder` accepts timm's too."""
    return sorted(BUILDERS)


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
    if name in BUILDERS:
        return BUILDERS[name]
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


class Undrawn(TorchFunctionMode):
    """Inside, weights are not drawn, for networks that are only counted.

    Drawing takes most of the time of building, and on the meta device it loads torch's compiler, which takes seconds.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


def strides(name: str | Callable[..., nn.Module]) -> list[int]:
    """Return the strides of a backbone's end points, deepest first; built on the meta device."""
    with torch.device("meta"), Undrawn():
        return list(create(name).strides)


for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
