"""The sparse loss of the connectivity search (arXiv 1904.07642, section 3.2)."""

from __future__ import annotations

import torch
from torch import Tensor


def sparse_loss(w: Tensor, ratio: float | None = None, eps: float = 1e-10) -> Tensor:
    """Loss that drives every connection weight of a stage to 0 or 2, and their mean to a small kept fraction.

    With v = w/2 and m = mean(v): the mean binary entropy of v plus the cross-entropy between `ratio` and m
    (Wu, Zhang, Huang 2019, arXiv 1904.07642, section 3.2).

    Args:
        w: weights of one stage in [0, 2], any shape; the noisy, clamped sample of the forward pass.
        ratio: wanted mean of v in (0, 1); default min(2 / number of weights, 0.5), about two inputs a stage.
        eps: keeps the logarithms and their gradients finite at w = 0 and w = 2.

    Returns:
        A scalar.
    """
    if ratio is None:
        ratio = min(2 / w.numel(), 0.5)
    v = w / 2
    m = v.mean()
    entropy = -(v * torch.log(v + eps) + (1 - v) * torch.log(1 - v + eps)).mean()
    return entropy - (ratio * torch.log(m + eps) + (1 - ratio) * torch.log(1 - m + eps))


def weight_entropy(w: Tensor, eps: float = 1e-10) -> Tensor:
    """The part of :func:`sparse_loss` that makes weights hard: the mean binary entropy of w/2; arguments as there."""
    v = w / 2
    return -(v * torch.log(v + eps) + (1 - v) * torch.log(1 - v + eps)).mean()
