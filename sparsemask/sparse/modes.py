"""Masks that are still learnt, and masks that are fixed."""

from __future__ import annotations

from torch import nn

from sparsemask.errors import choose

MODES = ("soft", "hard")


def set_mask_mode(model: nn.Module, mode: str) -> nn.Module:
    """Say how a model's masks behave in training; in evaluation they are always hard.

    "soft", as modules are made: relaxed by Gumbel-softmax, and learnt. "hard", masks fixed: channel logits and the
    branches that predict data masks are frozen and their masks are hard; the other weights still train. Raises UseError
    for any other mode.
    """
    choose(mode, MODES, "mask mode")
    for module in model.modules():
        if hasattr(type(module), "mask_mode"):
            module.mask_mode = mode
            for parameter in module.mask_parameters():
                parameter.requires_grad_(mode == "soft")
    return model
