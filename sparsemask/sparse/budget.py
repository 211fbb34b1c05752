"""How much the masks keep, and the loss that pushes it down (SMSR, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def kept_fraction(mask: Tensor, dense: Tensor) -> Tensor:
    """η of each layer: the mean over channels and locations of c_sparse·M + c_dense; (L,).

    mask (N, 1, *spatial) soft or bool; dense (L, C) each channel's weight as a dense one, soft or bool. Differentiable
    in both.
    """
    dense = dense.to(torch.float32) if dense.dtype == torch.bool else dense
    kept = mask.to(dense.dtype).mean()
    share = dense.mean(1)
    return (1 - share) * kept + share


def budget_loss(kept: Sequence[Tensor]) -> Tensor:
    """Mean of η over all layers of all modules: what the published loss multiplies with λ."""
    return torch.cat([one.reshape(-1) for one in kept]).mean()
