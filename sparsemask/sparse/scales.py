"""The operator `sparsemask::fuse_scales`: a decoder stage, from features of several sizes to its activated output.

Each feature goes through a 1×1 convolution at its own size, is upsampled (bilinear, corners aligned), and summed; a
bias and relu6 follow. Under a mask, dropped locations have only their first `dense` channels and are else zero, and a
feature is convolved where a kept location reads it. In C++ nothing is upsampled in memory: a place that is kept reads
its four neighbours in every feature. (SparseMask, arXiv 1904.07642, section 3.1.) For inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsemask.errors import UseError
from sparsemask.sparse import backends
from sparsemask.sparse.define import operator
from sparsemask.sparse.layout import channels_last, empty_like, laid_out_like


@operator("fuse_scales")
def fuse_scales(
    xs: list[Tensor], weights: list[Tensor], cut: list[bool], bias: Tensor, mask: Tensor | None, dense: int,
    height: int, width: int, backend: str,
) -> Tensor:  # fmt: skip
    """relu6(Σ upsampled (weights · xs) + bias), (N, C, height, width), channels-last where the features are.

    Args:
        xs: (N, C_j, h_j, w_j) each.
        weights: (C, C_j, 1, 1) each.
        cut: of which features relu6 is read.
        bias: (C,).
        mask: bool (N, 1, height, width), or None: all are kept.
        dense: how many of the channels, the first ones, dropped locations have.
        backend: of its own it has `native`; `auto` means it where it can compute.

    Raises UseError where shapes do not fit.
    """
    first = xs[0]
    for x, weight in zip(xs, weights, strict=True):
        if x.ndim != 4 or len(x) != len(first) or x.dtype != first.dtype:
            raise UseError(f"features {tuple(x.shape)} and {tuple(first.shape)} cannot be summed")
        if tuple(weight.shape) != (len(bias), x.shape[1], 1, 1):
            raise UseError(f"weights {tuple(weight.shape)} for {x.shape[1]} channels to {len(bias)}")
    if mask is not None and (mask.dtype != torch.bool or tuple(mask.shape) != (len(first), 1, height, width)):
        raise UseError(f"the mask must be bool {(len(first), 1, height, width)}, got {mask.dtype} {tuple(mask.shape)}")
    if bias.ndim != 1 or not 0 <= dense <= len(bias) or len(cut) != len(xs):
        raise UseError(f"{tuple(bias.shape)} numbers, {dense} dense channels, {len(cut)} flags of {len(xs)} features")
    server = backends.find("native" if backend == "auto" else backend)
    own = getattr(server, "fuse_scales", None)
    run = own if own and server.why_not(first.device, first.dtype) is None else plain
    like = next((x for x in xs if channels_last(x)), first)  # of a single place either layout is the same
    return laid_out_like(run(xs, weights, cut, bias, mask, dense, height, width), like)


def plain(xs, weights, cut, bias, mask, dense, height, width) -> Tensor:
    """Of torch's own operators."""
    total = bias.to(xs[0].dtype).view(1, -1, 1, 1)
    for x, weight, limited in sorted(zip(xs, weights, cut, strict=True), key=lambda one: one[0].shape[-1]):
        x = F.conv2d(F.relu6(x) if limited else x, weight.to(x.dtype))
        if tuple(x.shape[-2:]) not in ((height, width), (1, 1)):
            x = F.interpolate(x, size=(height, width), mode="bilinear", align_corners=True)
        total = x + total
    y = total.expand(-1, -1, height, width).clamp(0, 6)
    if mask is not None:
        y[:, dense:] *= mask
    return y


def carry(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask, bool (N, 1, H, W), on the grid of a feature (h, w) that is upsampled to it: kept if any kept reads it."""
    if tuple(mask.shape[-2:]) == tuple(size):
        return mask
    if tuple(size) == (1, 1):
        return mask.flatten(1).any(1).view(-1, 1, 1, 1)
    found = mask.to(torch.int32)
    for d in (2, 3):  # along one axis after the other, by differences of running sums
        first, end = _readers(size[d - 2], mask.shape[d], str(mask.device))
        sums = F.pad(found.cumsum(d), (1, 0) if d == 3 else (0, 0, 1, 0))
        found = (sums.index_select(d, end) > sums.index_select(d, first)).to(torch.int32)
    return found > 0


@lru_cache(maxsize=64)
def _readers(n: int, m: int, device: str) -> tuple[Tensor, Tensor]:
    """(first, end), (n,) each: the output locations of m that read an input location of n are first ... end - 1."""
    with torch.inference_mode(False):
        at = torch.arange(m, dtype=torch.float64) * ((n - 1) / max(m - 1, 1))
        wide = 1 + 1e-4  # one too many rather than one too few by rounding
        inputs = torch.arange(n, dtype=torch.float64)[:, None]
        first, end = (at[None] <= inputs - wide).sum(1), (at[None] < inputs + wide).sum(1)
        return first.to(device), end.to(device)


@torch.library.register_fake("sparsemask::fuse_scales")
def _fake(xs, weights, cut, bias, mask, dense, height, width, backend) -> Tensor:
    return empty_like(next((x for x in xs if channels_last(x)), xs[0]), bias.shape[0], (height, width))


@register_flop_formula(torch.ops.sparsemask.fuse_scales, get_raw=True)
def _flops(xs, weights, cut, bias, mask, dense, *_, out_val=None, **__) -> int:
    total = 0  # of the convolutions: upsampling is not counted, as torch's own is not
    for x in xs:
        places = x.shape[0] * x.shape[2] * x.shape[3]
        whole = mask is None or x.shape[2] == x.shape[3] == 1  # a single place is not skipped
        kept = places if whole else int(carry(mask, x.shape[-2:]).sum())
        total += x.shape[1] * (kept * len(bias) + (places - kept) * dense)
    return 2 * total
