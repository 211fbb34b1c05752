"""Relaxed binary masks: softmax over two logits with Gumbel noise (Jang et al. 2017, arXiv 1611.01144)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from sparsemask.errors import UseError


def gumbel_mask(logits: Tensor, tau: float = 1.0, dim: int = 1, noise: bool = True) -> Tensor:
    """Soft masks in (0, 1) that sum to 1 along `dim`: softmax((logits + noise)/τ), without straight-through.

    Args:
        logits: any shape, floating point.
        tau: temperature, above 0; near 0 the masks are nearly hard.
        dim: along which the alternatives lie.
        noise: add Gumbel noise, drawn from torch's global generator.

    Returns:
        Of the logits' shape.

    Raises:
        UseError: for a temperature that is not above 0.
    """
    if not tau > 0:
        raise UseError(f"the temperature tau must be above 0, got {tau}")
    if noise:
        return F.gumbel_softmax(logits, tau=tau, dim=dim)
    return F.softmax(logits / tau, dim)
