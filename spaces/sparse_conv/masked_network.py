"""Base class of networks with fine-grained masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@torch.no_grad()
def begin_smoothly(up: nn.ConvTranspose2d) -> None:
    """Start a transposed 3×3 convolution of stride 2 as bilinear upsampling of random channels.

    With independent random weights its four phases differ more than the image's locations do, and short trainings end
    with checkerboard masks.
    """
    line = up.weight.new_tensor([0.5, 1.0, 0.5])
    up.weight.copy_(up.weight[:, :, 1:2, 1:2] * line[:, None] * line)


@runtime_checkable
class LocationMask(Protocol):
    """A mask branch: predicts from features which locations of a module are kept."""

    threshold: float
    """A hard mask keeps a location if P(keep) is above it; 0.5 is the argmax."""

    def logits(self, x: Tensor) -> Tensor:
        """Predict two logits a location; index 1 keeps it."""


class MaskedNetwork(nn.Module):
    """A network with fine-grained masks, as search, evaluation and visualisation use it.

    In training masks are soft (:func:`sparsemask.sparse.set_mask_mode`); in evaluation they are hard. `kept` and the
    attributes after it describe the last forward pass, of a batch of N.
    """

    tau: float = 1.0
    """Temperature of the soft masks, set by the search before a step."""
    config: Mapping[str, Any]
    """Arguments that build the network again, plain values; stored in its files."""
    kept: Sequence[Tensor]
    """Kept fractions (L,) of the layers of each masked module, in [0, 1]; differentiable in training."""
    hard_kept: Sequence[Tensor]
    """The same for hard masks."""
    masks: Sequence[Tensor]
    """Data mask of each masked module, bool (N, 1, *spatial)."""
    kept_weights: Sequence[Tensor] = ()
    """Fraction of all multiply-adds in each layer, (L,), of each masked module; empty: all layers weigh the same."""
    kept_base: Tensor | float = 0.0
    """Fraction of all multiply-adds in unmasked layers and mask branches; used together with `kept_weights`."""
    mask_names: Sequence[str] | None = None
    """Short name of each masked module, empty for those without a data mask; None: all have one."""
