"""The operator `sparsemask::fuse_scales`: features of several sizes brought to one, summed, biased, and relu6 of it.

Upsampling is bilinear, corners aligned. Under a mask, dropped locations have only their first `dense` channels and are
else zero. In C++ nothing is upsampled in memory: a place that is kept reads its four neighbours in every feature. It is
what a decoder stage does after its 1×1 convolutions (SparseMask, arXiv 1904.07642, section 3.1), for inference.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsemask.errors import UseError
from sparsemask.sparse import backends
from sparsemask.sparse.define import operator
from sparsemask.sparse.layout import empty_like, laid_out_like


@operator("fuse_scales")
def fuse_scales(
    xs: list[Tensor], bias: Tensor, mask: Tensor | None, dense: int, height: int, width: int, backend: str
) -> Tensor:
    """relu6(Σ upsampled xs + bias), (N, C, height, width), channels-last in memory where the first feature is.

    Args:
        xs: (N, C, h, w) each.
        bias: (C,).
        mask: bool (N, 1, height, width), or None: all are kept.
        dense: how many of the channels, the first ones, dropped locations have.
        backend: of its own it has `native`; `auto` means it where it can compute.
    """
    first = xs[0]
    for x in xs:
        if x.ndim != 4 or x.shape[:2] != first.shape[:2] or x.dtype != first.dtype:
            raise UseError(f"features {tuple(x.shape)} and {tuple(first.shape)} cannot be summed")
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != (len(first), 1, height, width)):
        raise UseError(f"the mask must be bool {(len(first), 1, height, width)}, got {mask.dtype} {tuple(mask.shape)}")
    if tuple(bias.shape) != (first.shape[1],) or not 0 <= dense <= first.shape[1]:
        raise UseError(f"{tuple(bias.shape)} numbers and {dense} dense of {first.shape[1]} channels")
    server = backends.find("native" if backend == "auto" else backend)
    own = getattr(server, "fuse_scales", None)
    if own and server.why_not(first.device, first.dtype) is None:
        return laid_out_like(own(xs, bias, mask, dense, height, width), first)
    return laid_out_like(plain(xs, bias.to(first.dtype), mask, dense, height, width), first)


def plain(xs: list[Tensor], bias: Tensor, mask: Tensor | None, dense: int, height: int, width: int) -> Tensor:
    """Of torch's own operators."""
    total = bias.view(1, -1, 1, 1)
    for x in sorted(xs, key=lambda x: x.shape[-1]):
        if tuple(x.shape[-2:]) != (height, width):
            if tuple(x.shape[-2:]) != (1, 1):
                x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)
        total = x + total
    y = total.expand(-1, -1, height, width).clamp(0, 6)
    if mask is not None:
        y[:, dense:] *= mask
    return y


@torch.library.register_fake("sparsemask::fuse_scales")
def _fake(xs, bias, mask, dense, height, width, backend) -> Tensor:
    return empty_like(xs[0], xs[0].shape[1], (height, width))


@register_flop_formula(torch.ops.sparsemask.fuse_scales, get_raw=True)
def _flops(*_, out_val=None, **__) -> int:
    return 0  # no convolution: like torch's own upsampling it is not counted
