"""The operator `sparsemask::locate`: which locations of a module's output are kept, by a light branch on its input.

The input is pooled by two; a 1×1 and a 3×3 convolution with relu and a last one follow, whose two logits say drop and
keep: transposed with stride 2 where the module has stride 1, 1×1 where it has stride 2. (Data masks: Wang et al. 2021,
arXiv 2006.09603, section 3.1, here at half the size.) A first convolution of 3×3 comes before the pooling, as theirs
does. For inference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.ops import dispatch
from sparsemask.ops.registration import register

WIDEST = 16  # channels of a branch, as many as kernels have room for


@dataclass(frozen=True, slots=True)
class PredictMaskCall:
    """Arguments of :func:`locate`, checked.

    Attributes:
        apply_relu6: whether x passes relu6 first.
    """

    x: Tensor
    first: Tensor
    first_bias: Tensor
    second: Tensor
    second_bias: Tensor
    last: Tensor
    last_bias: Tensor
    threshold: float
    apply_relu6: bool


def locate(
    x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor, last: Tensor, last_bias: Tensor,
    threshold: float, cut: bool, backend: str,
) -> Tensor:  # fmt: skip
    """What the operator runs.

    Args:
        x: features (N, C, H, W).
        first: (w, C, 1, 1), after the pooling, or (w, C, 3, 3), before it; second: (w, w, 3, 3); biases (w,).
        last: (w, 2, 3, 3), transposed, stride 1; or (2, w, 1, 1), stride 2; its bias (2,). Index 1 keeps.
        threshold: a location is kept where P(keep) is above it; 0.5 is the argmax.
        cut: whether x passes relu6 first.
        backend: of its own it has `native`; `auto` means it where it can compute.

    Returns:
        The mask, bool (N, 1, H, W), or (N, 1, ceil(H / 2), ceil(W / 2)) of a module of stride 2.

    Raises:
        UseError: for shapes that do not fit.
    """
    width, transposed = len(first), last.shape[-1] == 3
    size = (3, 3) if first.shape[2:] == (3, 3) else (1, 1)
    wanted = [(width, x.shape[1], *size), (width, width, 3, 3), (width, 2, 3, 3) if transposed else (2, width, 1, 1)]
    for one, shape in zip((first, second, last), wanted, strict=True):
        if tuple(one.shape) != shape:
            raise UseError(f"a mask branch on {x.shape[1]} channels has weights {shape}, got {tuple(one.shape)}")
    call = PredictMaskCall(x, first, first_bias, second, second_bias, last, last_bias, threshold, cut)
    return dispatch.able_or_reference(backend, x).locate(call)


def margin(threshold: float) -> float:
    """How much the logit that keeps must exceed the other."""
    return -math.inf if threshold <= 0 else math.inf if threshold >= 1 else math.log(threshold / (1 - threshold))


def reference(call: PredictMaskCall) -> Tensor:
    """Of torch's own operators."""
    x, kind = call.x, call.x.dtype
    height, width = x.shape[-2:]
    if call.apply_relu6:
        x = F.relu6(x)
    first, first_bias = call.first.to(kind), call.first_bias.to(kind)
    if first.shape[-1] == 3:
        y = F.avg_pool2d(F.relu(F.conv2d(padded(x), first, first_bias, padding=1)), 2)
    else:
        y = F.relu(F.conv2d(F.avg_pool2d(padded(x), 2), first, first_bias))
    y = F.relu(F.conv2d(y, call.second.to(kind), call.second_bias.to(kind), padding=1))
    last, last_bias = call.last.to(kind), call.last_bias.to(kind)
    if last.shape[-1] == 3:
        y = F.conv_transpose2d(y, last, last_bias, 2, 1, 1)[..., :height, :width]
    else:
        y = F.conv2d(y, last, last_bias)
    drop, keep = y.split(1, 1)
    return keep - drop > margin(call.threshold)


def padded(x: Tensor) -> Tensor:
    """Odd sizes padded by their last row."""
    height, width = x.shape[-2:]
    open_sizes = torch.compiler.is_exporting()  # they may be odd
    return F.pad(x, (0, width % 2, 0, height % 2), mode="replicate") if open_sizes or height % 2 or width % 2 else x


def _fake(x, first, first_bias, second, second_bias, last, *_) -> Tensor:
    size = x.shape[-2:] if last.shape[-1] == 3 else tuple((n + 1) // 2 for n in x.shape[-2:])
    return x.new_empty(x.shape[0], 1, *size, dtype=torch.bool)


def count_flops(x, first, first_bias, second, second_bias, last, *_, out_val=None, **__) -> int:
    """The operator's FLOP formula."""
    locations = x.shape[0] * -(-x.shape[2] // 2) * -(-x.shape[3] // 2)
    return 2 * locations * (first.numel() * (4 if first.shape[-1] == 3 else 1) + second.numel() + last.numel())


register("locate", locate, fake=_fake, flops=count_flops)
