"""The operator `sparsemask::fuse_scales`: a decoder stage, from features of several sizes to its activated output.

Each feature goes through a 1×1 convolution at its own size, is upsampled (bilinear, corners aligned), and summed; a
bias and relu6 follow. Under a mask, dropped locations have only their first `dense` channels and are else zero, and a
feature is convolved where a kept location reads it. In C++ nothing is upsampled in memory: a kept location reads its
four neighbours in every feature. (SparseMask, arXiv 1904.07642, section 3.1.) For inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.ops import dispatch
from sparsemask.ops.layout import channels_last, empty_like
from sparsemask.ops.registration import register

if TYPE_CHECKING:
    from sparsemask.backends import Backend


@dataclass(frozen=True, slots=True)
class MultiscaleSumCall:
    """Arguments of :func:`fuse_scales`, checked.

    Attributes:
        apply_relu6: of each feature, whether it passes relu6 first.
    """

    xs: list[Tensor]
    weights: list[Tensor]
    apply_relu6: list[bool]
    bias: Tensor
    mask: Tensor | None
    dense: int
    height: int
    width: int

    @property
    def like(self) -> Tensor:
        """The features, whose layout and type the result has."""
        return _like(self.xs)

    def served_by(self, backend: Backend) -> Tensor:
        """See :meth:`Call.served_by`."""
        return backend.fuse_scales(self)


def fuse_scales(
    xs: list[Tensor], weights: list[Tensor], cut: list[bool], bias: Tensor, mask: Tensor | None, dense: int,
    height: int, width: int, backend: str,
) -> Tensor:  # fmt: skip
    """What the operator runs: relu6(Σ upsampled (weights · xs) + bias).

    Args:
        xs: (N, C_j, h_j, w_j) each.
        weights: (C, C_j, 1, 1) each.
        cut: of each feature, whether it passes relu6 first.
        bias: (C,).
        mask: bool (N, 1, height, width), or None: all are kept.
        dense: how many of the channels, the first ones, dropped locations have.
        backend: of its own it has `native`; `auto` means it where it can compute.

    Returns:
        (N, C, height, width), channels-last where a feature is.

    Raises:
        UseError: for shapes that do not fit.
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
    return dispatch.serve_anyhow(MultiscaleSumCall(xs, weights, cut, bias, mask, dense, height, width), backend)


def _like(xs: Sequence[Tensor]) -> Tensor:
    """The feature whose layout the result has: of a single location either layout is the same."""
    return next((x for x in xs if channels_last(x)), xs[0])


def reference(call: MultiscaleSumCall) -> Tensor:
    """Of torch's own operators."""
    size = call.height, call.width
    total = call.bias.to(call.xs[0].dtype).view(1, -1, 1, 1)
    each = zip(call.xs, call.weights, call.apply_relu6, strict=True)
    for x, weight, limited in sorted(each, key=lambda one: one[0].shape[-1]):
        x = F.conv2d(F.relu6(x) if limited else x, weight.to(x.dtype))
        if tuple(x.shape[-2:]) not in (size, (1, 1)):
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=True)
        total = x + total
    y = total.expand(-1, -1, *size).clamp(0, 6)
    if call.mask is not None:
        y[:, call.dense :] *= call.mask
    return y


def carry(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask, bool (N, 1, H, W), on the grid of a feature (h, w) that is upsampled to it: kept if any kept reads it."""
    if tuple(mask.shape[-2:]) == tuple(size):
        return mask
    if tuple(size) == (1, 1):
        return mask.flatten(1).any(1).view(-1, 1, 1, 1)
    carried = mask.to(torch.int32)
    for d in (2, 3):  # along one axis after the other, by differences of running sums
        first, end = _readers(size[d - 2], mask.shape[d], str(mask.device))
        sums = F.pad(carried.cumsum(d), (1, 0) if d == 3 else (0, 0, 1, 0))
        carried = (sums.index_select(d, end) > sums.index_select(d, first)).to(torch.int32)
    return carried > 0


@lru_cache(maxsize=64)
def _readers(n: int, m: int, device: str) -> tuple[Tensor, Tensor]:
    """(first, end), (n,) each: the output locations of m that read an input location of n are first ... end - 1."""
    with torch.inference_mode(False):
        at = torch.arange(m, dtype=torch.float64) * ((n - 1) / max(m - 1, 1))
        wide = 1 + 1e-4  # one too many rather than one too few by rounding
        inputs = torch.arange(n, dtype=torch.float64)[:, None]
        first, end = (at[None] <= inputs - wide).sum(1), (at[None] < inputs + wide).sum(1)
        return first.to(device), end.to(device)


def _fake(xs, weights, cut, bias, mask, dense, height, width, backend) -> Tensor:
    return empty_like(_like(xs), bias.shape[0], (height, width))


def count_flops(xs, weights, cut, bias, mask, dense, *_, out_val=None, **__) -> int:
    """The operator's FLOP formula."""
    total = 0  # of the convolutions: upsampling is not counted, as torch's own is not
    for x in xs:
        locations = x.shape[0] * x.shape[2] * x.shape[3]
        whole = mask is None or x.shape[2] == x.shape[3] == 1  # a single location is not skipped
        kept = locations if whole else int(carry(mask, x.shape[-2:]).sum())
        total += x.shape[1] * (kept * len(bias) + (locations - kept) * dense)
    return 2 * total


register("fuse_scales", fuse_scales, fake=_fake, flops=count_flops)
