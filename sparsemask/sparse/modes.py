"""Whether a model's masks are being learnt or are fixed."""

from __future__ import annotations

from torch import nn

from sparsemask.errors import choose
from sparsemask.sparse.masks import DataMask

MODES = ("soft", "hard")


def set_mask_mode(model: nn.Module, mode: str) -> nn.Module:
    """Soft: masks are learnt, relaxed in training. hard: masks are fixed. Returns the model.

    Fixed masks are hard in training too, the channel logits and the branches that predict the data masks frozen, while
    all other weights go on learning.
    """
    choose(mode, MODES, "mask mode")
    for module in model.modules():
        if hasattr(module, "mask_mode"):
            module.mask_mode = mode
        if isinstance(module, DataMask):
            module.requires_grad_(mode == "soft")
        elif hasattr(module, "ch_mask"):
            module.ch_mask.requires_grad_(mode == "soft")
    return model
