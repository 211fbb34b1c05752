"""Masks that are still learnt, and masks that are fixed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

from torch import nn

from sparsemask.errors import choose

MODES = ("soft", "hard")


@runtime_checkable
class HasMasks(Protocol):
    """A module with masks that are learnt while `mask_mode` is "soft"."""

    mask_mode: str

    def mask_parameters(self) -> Iterator[nn.Parameter]:
        """What :func:`set_mask_mode` freezes."""


def set_mask_mode(model: nn.Module, mode: str) -> nn.Module:
    """Say how a model's masks behave in training; in evaluation they are always hard.

    Args:
        model: changed in place.
        mode: "soft", as modules are made: relaxed by Gumbel-softmax, and learnt. "hard", masks fixed: channel logits
            and the branches that predict data masks are frozen and their masks are hard; the other weights still train.

    Returns:
        The model.

    Raises:
        UseError: for any other mode.
    """
    choose(mode, MODES, "mask mode")
    for module in model.modules():
        if isinstance(module, HasMasks):
            module.mask_mode = mode
            for parameter in module.mask_parameters():
                parameter.requires_grad_(mode == "soft")
    return model
