"""The operator `sparsemask::locate`: which places of a module's output are kept, by a light branch on its input.

The input is pooled by two; a 1×1 and a 3×3 convolution with relu and a last one follow, whose two logits say drop and
keep: transposed with stride 2 where the module has stride 1, 1×1 where it has stride 2. (Data masks: Wang et al. 2021,
arXiv 2006.09603, section 3.1, here at half the size.) For inference.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsemask.errors import UseError
from sparsemask.sparse import backends
from sparsemask.sparse.define import operator


@operator("locate")
def locate(
    x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor, last: Tensor, last_bias: Tensor,
    threshold: float, cut: bool, backend: str,
) -> Tensor:  # fmt: skip
    """x (N, C, H, W) to a mask, bool (N, 1, H, W), or (N, 1, ceil(H / 2), ceil(W / 2)) of a module of stride 2.

    Args:
        first: (w, C, 1, 1); second: (w, w, 3, 3); biases (w,).
        last: (w, 2, 3, 3), transposed, stride 1; or (2, w, 1, 1), stride 2; its bias (2,). Index 1 keeps.
        threshold: a place is kept where P(keep) is above it; 0.5 is the argmax.
        cut: relu6 of x is read.
        backend: of its own it has `native`; `auto` means it where it can compute.

    Raises UseError where shapes do not fit.
    """
    width, transposed = len(first), last.shape[-1] == 3
    wanted = [(width, x.shape[1], 1, 1), (width, width, 3, 3), (width, 2, 3, 3) if transposed else (2, width, 1, 1)]
    for one, shape in zip((first, second, last), wanted, strict=True):
        if tuple(one.shape) != shape:
            raise UseError(f"a mask branch on {x.shape[1]} channels has weights {shape}, got {tuple(one.shape)}")
    given = (x, first, first_bias, second, second_bias, last, last_bias, threshold, cut)
    server = backends.find("native" if backend == "auto" else backend)
    own = getattr(server, "locate", None)
    if own and width <= 16 and x.numel() and server.why_not(x.device, x.dtype) is None:
        return own(*given)
    return plain(*given)


def least(threshold: float) -> float:
    """How much the logit that keeps must exceed the other."""
    return -math.inf if threshold <= 0 else math.inf if threshold >= 1 else math.log(threshold / (1 - threshold))


def plain(x, first, first_bias, second, second_bias, last, last_bias, threshold, cut) -> Tensor:
    """Of torch's own operators."""
    height, width = x.shape[-2:]
    if cut:
        x = F.relu6(x)
    y = F.avg_pool2d(padded(x), 2)
    y = F.relu(F.conv2d(y, first.to(x.dtype), first_bias.to(x.dtype)))
    y = F.relu(F.conv2d(y, second.to(x.dtype), second_bias.to(x.dtype), padding=1))
    last, last_bias = last.to(x.dtype), last_bias.to(x.dtype)
    if last.shape[-1] == 3:
        y = F.conv_transpose2d(y, last, last_bias, 2, 1, 1)[..., :height, :width]
    else:
        y = F.conv2d(y, last, last_bias)
    drop, keep = y.split(1, 1)
    return keep - drop > least(threshold)


def padded(x: Tensor) -> Tensor:
    """Odd sizes padded by their last row."""
    height, width = x.shape[-2:]
    open_sizes = torch.compiler.is_exporting()  # they may be odd
    return F.pad(x, (0, width % 2, 0, height % 2), mode="replicate") if open_sizes or height % 2 or width % 2 else x


@torch.library.register_fake("sparsemask::locate")
def _fake(x, first, first_bias, second, second_bias, last, *_) -> Tensor:
    size = x.shape[-2:] if last.shape[-1] == 3 else tuple((n + 1) // 2 for n in x.shape[-2:])
    return x.new_empty(x.shape[0], 1, *size, dtype=torch.bool)


@register_flop_formula(torch.ops.sparsemask.locate, get_raw=True)
def _flops(x, first, first_bias, second, second_bias, last, *_, out_val=None, **__) -> int:
    places = x.shape[0] * -(-x.shape[2] // 2) * -(-x.shape[3] // 2)
    return 2 * places * (first.numel() + second.numel() + last.numel())
