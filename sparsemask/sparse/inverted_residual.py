"""The operator `sparsemask::inverted_residual`: expansion, depth-wise 3×3 and projection under one data mask.

All three have channel masks of their own; relu6 follows the first two. Dense channels are computed everywhere from
dense ones, the rest at kept locations; a depth-wise convolution reads zeros where its input was dropped. Where there is
a shortcut the input is added, so that a dropped location is the identity. (Inverted residuals: Sandler et al. 2018,
arXiv 1801.04381; sparse mask convolution: Wang et al. 2021, section 3.2.) For inference, batch norms folded.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsemask.errors import UseError
from sparsemask.sparse import backends, flops
from sparsemask.sparse.checks import check_conv
from sparsemask.sparse.define import operator
from sparsemask.sparse.geometry import Geometry
from sparsemask.sparse.layout import empty_like, laid_out_like

TOP = 6.0  # of relu6
POINT = Geometry.of(2, 1)


def spread(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask (N, 1, h, w) on the output grid of a stride-2 module carried to its input's, `size`: its 2×2 blocks'."""
    return mask.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., : size[0], : size[1]]


def around(channels: int, stride: int) -> Geometry:
    """The geometry of the depth-wise convolution."""
    return Geometry.of(2, 3, stride, 1, groups=channels)


@operator("inverted_residual")
def inverted_residual(
    x: Tensor,
    mask: Tensor,
    expand: Tensor | None,
    expand_bias: Tensor | None,
    expand_dense: Tensor | None,
    depthwise: Tensor,
    depthwise_bias: Tensor,
    depthwise_dense: Tensor,
    project: Tensor,
    project_bias: Tensor,
    project_dense: Tensor,
    stride: int,
    shortcut: bool,
    backend: str,
) -> Tensor:
    """x (N, C, H, W) to (N, C', h, w), channels-last in memory where x is.

    Args:
        mask: bool (N, 1, h, w), on the output grid.
        expand: (M, C, 1, 1), or None with its bias and mask: no expansion, M = C.
        depthwise: (M, 1, 3, 3); project: (C', M, 1, 1); biases (M,), (M,), (C',).
        *_dense: channel masks, bool.
        stride: 1 or 2; shortcut: add x, stride 1.
        backend: see :mod:`sparsemask.sparse.backends`; one without a form of its own makes it of its convolutions.

    Raises UseError where shapes do not fit.
    """
    _check(x, mask, expand, expand_dense, depthwise, depthwise_dense, project, project_dense, stride, shortcut)
    if not mask.numel():
        return empty_like(x, len(project), mask.shape[-2:])
    weights = [expand, expand_bias, expand_dense, depthwise, depthwise_bias, depthwise_dense, project, project_bias]
    weights = [w if w is None or w.dtype == torch.bool else w.to(x.dtype) for w in weights]
    arguments = (x, mask, *weights, project_dense, stride, shortcut)
    return laid_out_like(run(backends.able(backend, x), *arguments), x)


def run(server, *arguments) -> Tensor:
    """By a backend's own form, else made of its convolutions."""
    own = getattr(server, "inverted_residual", None)
    return own(*arguments) if own else compose(server, *arguments)


def compose(
    server, x, mask, expand, expand_bias, expand_dense, depthwise, depthwise_bias, depthwise_dense, project,
    project_bias, project_dense, stride, shortcut,
) -> Tensor:  # fmt: skip
    """From a backend's convolutions."""
    y, before = x, torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
    if expand is not None:
        wide = mask if stride == 1 else spread(mask, x.shape[-2:])
        y = server.conv(y, expand, expand_bias, wide, before, expand_dense, POINT, "none").clamp_(0, TOP)
        before = expand_dense
    geometry = around(len(depthwise), stride)
    y = server.conv(y, depthwise, depthwise_bias, mask, before, depthwise_dense, geometry, "none").clamp_(0, TOP)
    y = server.conv(y, project, project_bias, mask, depthwise_dense, project_dense, POINT, "none")
    return y.add_(x) if shortcut else y


def _check(x, mask, expand, expand_dense, depthwise, depthwise_dense, project, project_dense, stride, shortcut) -> None:
    channels, before = len(depthwise), torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
    if stride not in (1, 2):
        raise UseError(f"an inverted residual has stride 1 or 2, not {stride}")
    if shortcut and (stride == 2 or len(project) != x.shape[1]):
        raise UseError(f"no shortcut from {x.shape[1]} to {len(project)} channels at stride {stride}")
    middle = x
    if expand is not None:
        wide = mask if stride == 1 else spread(mask, x.shape[-2:])
        check_conv(x, expand, None, wide, before, expand_dense, POINT, "none")
        before, middle = expand_dense, x.new_empty(1).expand(x.shape[0], len(expand), *x.shape[-2:])
    g = around(channels, stride)
    size = check_conv(middle, depthwise, None, mask, before, depthwise_dense, g, "none")
    middle = x.new_empty(1).expand(x.shape[0], channels, *size)
    check_conv(middle, project, None, mask, depthwise_dense, project_dense, POINT, "none")


@torch.library.register_fake("sparsemask::inverted_residual")
def _fake(x, mask, *arguments) -> Tensor:
    project = arguments[6]
    return empty_like(x, project.shape[0], mask.shape[-2:])


@register_flop_formula(torch.ops.sparsemask.inverted_residual, get_raw=True)
def _flops(
    x, mask, expand, expand_bias, expand_dense, depthwise, depthwise_bias, depthwise_dense, project, project_bias,
    project_dense, stride, *_, out_val=None,
) -> int:  # fmt: skip
    before, total = torch.ones(x.shape[1], dtype=torch.bool, device=x.device), 0
    if expand is not None:
        wide = mask if stride == 1 else spread(mask, x.shape[-2:])
        total += flops.conv_multiply_adds(expand, wide, before, expand_dense, POINT)
        before = expand_dense
    total += flops.conv_multiply_adds(depthwise, mask, before, depthwise_dense, around(len(depthwise), stride))
    return 2 * (total + flops.conv_multiply_adds(project, mask, depthwise_dense, project_dense, POINT))
