"""Multiply-adds that sparse mask convolutions execute, from their hard masks.

Convolutions count as torch counts its own: padded places are multiplied too. A transposed convolution counts the taps
that each output reads. The count is the method's, whichever backend computes; `reference` executes more.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from sparsemask.sparse.geometry import Geometry


def conv_multiply_adds(weight: Tensor, mask: Tensor, in_dense: Tensor, out_dense: Tensor, geometry: Geometry) -> int:
    """Multiply-adds of a sparse mask convolution; with masks without content (fake tensors), if everything is kept."""
    everywhere, kept = _reads(mask, geometry)
    full = in_dense.numel() * out_dense.numel() // geometry.groups
    if kept is None:
        return everywhere * full
    ins, outs = in_dense.view(geometry.groups, -1).sum(1), out_dense.view(geometry.groups, -1).sum(1)
    return kept * full + (everywhere - kept) * int((ins * outs).sum())


def block_multiply_adds(mask: Tensor, weights: list[Tensor], dense: Tensor, collect_weight: Tensor) -> int:
    """Multiply-adds of a block's layers and of its 1×1 convolution, which is split like them."""
    before, total = torch.ones(weights[0].shape[1], dtype=torch.bool, device=dense.device), 0
    dims = mask.ndim - 2
    for weight, mine in zip(weights, dense, strict=True):
        total += conv_multiply_adds(weight, mask, before, mine, Geometry.of(dims, tuple(weight.shape[2:])))
        before = mine
    outs = torch.ones(collect_weight.shape[0], dtype=torch.bool, device=dense.device)
    return total + conv_multiply_adds(collect_weight, mask, dense.flatten(), outs, Geometry.of(dims, 1))


def _reads(mask: Tensor, geometry: Geometry) -> tuple[int, int | None]:
    """Kernel taps that all outputs read, and those that kept outputs read (None: not to be known)."""
    known = not is_fake(mask) and mask.device.type != "meta"
    if not geometry.transposed:
        taps = math.prod(geometry.kernel)
        return mask.numel() * taps, int(mask.sum()) * taps if known else None
    spatial = mask.shape[2:]
    counts = torch.ones((), dtype=torch.int64)
    for d, size in enumerate(spatial):
        taps = torch.arange(geometry.kernel[d]) * geometry.dilation[d]
        at = torch.arange(size)[:, None] + geometry.padding[d] - taps
        counts = counts[..., None] * (at % geometry.stride[d] == 0).sum(1)
    everywhere = mask.shape[0] * int(counts.sum())
    return everywhere, int((mask * counts.to(mask.device)).sum()) if known else None
