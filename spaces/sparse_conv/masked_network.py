"""What networks with fine-grained masks have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@torch.no_grad()
def begin_smoothly(up: nn.ConvTranspose2d) -> None:
    """Start a transposed 3×3 convolution of stride 2 as bilinear upsampling of random channels.

    Drawn freely its four phases differ more than the picture's places do, and short trainings end with masks that are
    a checkerboard over everything.
    """
    line = up.weight.new_tensor([0.5, 1.0, 0.5])
    up.weight.copy_(up.weight[:, :, 1:2, 1:2] * line[:, None] * line)


@runtime_checkable
class LocationMask(Protocol):
    """A mask branch: it predicts from features which locations of a module matter."""

    threshold: float
    """A location is kept where P(keep) is above it, when masks are hard; 0.5 is the argmax."""

    def logits(self, x: Tensor) -> Tensor:
        """Two logits a location, index 1 keeps it."""


class MaskedNetwork(nn.Module):
    """What search, evaluation and pictures ask of a network with fine-grained masks.

    In training masks are soft (:func:`sparsemask.sparse.set_mask_mode`); in evaluation they are hard. After a forward
    pass of a batch of N:
    """

    tau: float = 1.0
    """Temperature of the soft masks, set by the search before a step."""
    config: Mapping[str, Any]
    """Plain values that build the network again: what its files say of it."""
    kept: Sequence[Tensor]
    """Of each masked module the kept fractions (L,) of its layers, in [0, 1]; differentiable in training."""
    hard_kept: Sequence[Tensor]
    """The same of hard masks in their place."""
    masks: Sequence[Tensor]
    """Of each masked module the data mask, bool (N, 1, *spatial)."""
    kept_weights: Sequence[Tensor] = ()
    """Of each masked module the share of all multiply-adds that each layer has, (L,); empty: all count alike."""
    kept_base: Tensor | float = 0.0
    """Share of all multiply-adds of what has no masks and of mask branches; it counts where `kept_weights` do."""
    mask_names: Sequence[str] | None = None
    """A short name of each masked module, empty of those without a data mask; None: all have one."""
