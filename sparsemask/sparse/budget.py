"""Kept fraction of a network's computation, and the budget loss on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsemask.errors import UseError


def kept_fraction(mask: Tensor, channels: Tensor) -> Tensor:
    """Kept fraction of each layer under one data mask: mean over channels and locations of sparse·M + dense.

    Args:
        mask: data mask (N, 1, *spatial), soft or hard.
        channels: dense shares (L, C) or (C,), soft or hard; or channel logits (1, C, L, 2), then taken as hard masks.

    Returns:
        (L,), in [0, 1]; differentiable where the masks are. (Wang et al. 2021, section 3.1.)
    """
    if channels.ndim == 4:
        channels = harden_channels(channels)
    kind = mask.dtype if mask.is_floating_point() else torch.float32
    dense = channels.to(kind if not channels.is_floating_point() else channels.dtype).mean(-1).reshape(-1)
    return dense + (1 - dense) * mask.to(kind).mean()


def harden_channels(logits: Tensor) -> Tensor:
    """Channel logits (1, C, L, 2), index 0 dense, to hard masks (L, C): True is dense, and so is a tie."""
    return (logits[0, :, :, 0] >= logits[0, :, :, 1]).T


def budget_loss(kept: Sequence[Tensor]) -> Tensor:
    """Mean kept fraction over all modules and layers.

    Args:
        kept: of each module its layers' fractions (L,).

    Returns:
        A scalar in [0, 1].

    Raises:
        UseError: where there are none.
    """
    if not len(kept):
        raise UseError("no kept fractions: the network has no sparse mask modules, or has not run yet")
    return torch.cat([fractions.reshape(-1) for fractions in kept]).mean()
