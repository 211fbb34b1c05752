"""Encoders by name: built-in ones, feature models of timm (the extra `timm`) and a user's own.

:class:`Backbone` is their contract. Every module of this folder is loaded, so that a backbone is one file. An encoder
is built without the blocks behind the deepest end point that a decoder reads (:func:`truncate_`).
"""

from __future__ import annotations

import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from types import FunctionType
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sparsemask.errors import UseError
from sparsemask.plugins import imported, is_own
from sparsemask.spaces.backbones.registry import BUILDERS, Backbone, is_backbone, register
from sparsemask.weights import unbuilt_parts, under

__all__ = [
    "Backbone",
    "Truncatable",
    "as_saved",
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


@runtime_checkable
class Truncatable(Backbone, Protocol):
    """A backbone whose end points come one after the other, so that its later steps can be removed.

    A user's backbone joins by having the method::

        def truncate_(self, deepest: int) -> None:
            del self.steps[len(self.channels) - deepest :]

        def forward(self, x):
            points = []
            for step in self.steps:
                x = step(x)
                points.append(x)
            return [None] * (len(self.channels) - len(points)) + points[::-1]
    """

    def truncate_(self, deepest: int) -> None:
        """Remove what is computed for the end points before `deepest` alone, in place.

        What is left keeps its names and computes what it did; `channels` and `strides` stay as they are. Afterwards
        `forward` gives None for E_0 ... E_{deepest - 1}.

        Args:
            deepest: the first end point that stays, 1 to L - 1.
        """


def truncate_(backbone: nn.Module, deepest: int) -> list[str]:
    """Remove the blocks of a backbone behind an end point, in place; their weights are left out when loading.

    Args:
        backbone: a :class:`Truncatable` one; others stay whole.
        deepest: the deepest end point that is read: E_0 ... E_{deepest - 1} are None afterwards.

    Returns:
        Names of what was removed; empty where nothing lies behind, or the backbone cannot be truncated.

    Raises:
        UseError: a backbone that was truncated before, at an end point less deep.
    """
    earlier = backbone if isinstance(backbone, _Truncated) else None
    if earlier is not None and earlier.built_from > deepest:
        raise UseError(
            f"this backbone was truncated at end point {earlier.built_from} for another mask; a mask that reads "
            f"end point {deepest} needs a new one"
        )
    if not deepest or not isinstance(backbone, Truncatable):
        return []
    modules, tensors = [name for name, _ in backbone.named_modules()], list(backbone.state_dict())
    backbone.truncate_(deepest)
    left = {name for name, _ in backbone.named_modules()} | set(backbone.state_dict())
    removed: list[str] = []
    for name in (*modules, *tensors):
        if name not in left and not under(name, removed):
            removed.append(name)
    if not removed:
        return []
    if earlier is None:
        backbone.register_load_state_dict_pre_hook(_leave_out)
    vars(backbone)["unbuilt"] = [*(earlier.unbuilt if earlier else []), *removed]
    vars(backbone)["built_from"] = deepest
    return removed


def as_saved(
    build: Callable[[Mapping[str, Any]], nn.Module], config: Mapping[str, Any], state: Mapping[str, Tensor]
) -> nn.Module:
    """Build the network of a run that is resumed, whose optimizer has a state for every one of its parameters.

    Args:
        build: makes a network of a configuration.
        config: options by name; `whole_encoder` is set for a run of a version that built the whole encoder.
        state: the checkpoint's weights.
    """
    network = build(config)
    parts = unbuilt_parts(network)
    if any(under(key, parts) for key in state):
        network = build({**config, "whole_encoder": True})
    return network


@runtime_checkable
class _Truncated(Protocol):
    """A truncated backbone: its deepest end point, and the names of what was removed."""

    built_from: int
    unbuilt: Sequence[str]


def _leave_out(backbone: _Truncated, state: dict[str, Tensor], prefix: str, *_: Any) -> None:
    """Hook of `load_state_dict`: drop the weights of what is not built."""
    for key in [key for key in state if key.startswith(prefix) and under(key[len(prefix) :], backbone.unbuilt)]:
        del state[key]


for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
