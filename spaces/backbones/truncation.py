"""Encoders without the blocks behind the deepest end point that a decoder reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.spaces.backbones.registry import Backbone
from sparsemask.weights import unbuilt_parts, under


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
