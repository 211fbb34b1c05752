"""The operator `sparsemask::inverted_residual`: expansion, depth-wise 3×3 and projection under one data mask.

All three have channel masks of their own; relu6 follows the first two. Dense channels are computed everywhere from
dense ones, the rest at kept locations; a depth-wise convolution reads zeros where its input was dropped. Where there is
a shortcut the input is added, so that a dropped location is the identity. (Inverted residuals: Sandler et al. 2018,
arXiv 1801.04381; sparse mask convolution: Wang et al. 2021, section 3.2.) For inference, batch norms folded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsemask.errors import UseError
from sparsemask.sparse import backends, flops
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
    mask: Tensor | None,
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
        mask: bool (N, 1, h, w), on the output grid; None: everything is kept, whatever the channel masks.
        expand: (M, C, 1, 1), or None with its bias and mask: no expansion, M = C.
        depthwise: (M, 1, 3, 3); project: (C', M, 1, 1); biases (M,), (M,), (C',).
        *_dense: channel masks, bool.
        stride: 1 or 2; shortcut: add x, stride 1.
        backend: see :mod:`sparsemask.sparse.backends`; one without a form of its own makes it of its convolutions.

    Raises UseError where shapes do not fit.
    """
    _check(x, mask, expand, expand_dense, depthwise, depthwise_dense, project, project_dense, stride, shortcut)
    size = _size(x, stride)
    if not x.shape[0] * size[0] * size[1]:
        return empty_like(x, len(project), size)
    weights = [expand, expand_bias, expand_dense, depthwise, depthwise_bias, depthwise_dense, project, project_bias]
    weights = [w if w is None or w.dtype == torch.bool else w.to(x.dtype) for w in weights]
    arguments = (x, mask, *weights, project_dense, stride, shortcut)
    return laid_out_like(run(backends.able(backend, x), *arguments), x)


def run(server, *arguments) -> Tensor:
    """By a backend's own form, else made of its convolutions."""
    own = getattr(server, "inverted_residual", None)
    if own:
        return own(*arguments)
    return compose(server, *arguments) if arguments[1] is not None else plain(*arguments)


def plain(
    x, _, expand, expand_bias, __, depthwise, depthwise_bias, ___, project, project_bias, ____, stride, shortcut
) -> Tensor:
    """Of torch's own operators, everything kept."""
    y = x
    if expand is not None:
        y = F.conv2d(y, expand, expand_bias).clamp_(0, TOP)
    y = F.conv2d(y, depthwise, depthwise_bias, stride, 1, 1, len(depthwise)).clamp_(0, TOP)
    y = F.conv2d(y, project, project_bias)
    return y.add_(x) if shortcut else y


def _size(x: Tensor, stride: int) -> tuple[int, int]:
    """(h, w) of the output."""
    return -(-x.shape[2] // stride), -(-x.shape[3] // stride)


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
    """Shapes alone, compared one by one: this runs at every call."""
    if stride not in (1, 2):
        raise UseError(f"an inverted residual has stride 1 or 2, not {stride}")
    if x.ndim != 4:
        raise UseError(f"an inverted residual takes (N, C, H, W), not {tuple(x.shape)}")
    batch, inputs, outputs, middle = x.shape[0], x.shape[1], project.shape[0], depthwise.shape[0]
    if shortcut and (stride == 2 or outputs != inputs):
        raise UseError(f"no shortcut from {inputs} to {outputs} channels at stride {stride}")
    wanted = [("depthwise", depthwise, (middle, 1, 3, 3)), ("project", project, (outputs, middle, 1, 1))]
    if expand is not None:
        wanted.append(("expand", expand, (middle, inputs, 1, 1)))
    elif middle != inputs:
        raise UseError(f"{middle} depth-wise filters for {inputs} channels and no expansion")
    for name, one, shape in wanted:
        if one.shape != shape:
            raise UseError(f"weights of {name} must be {shape}, got {tuple(one.shape)}")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (batch, 1, *_size(x, stride))):
        size = (batch, 1, *_size(x, stride))
        raise UseError(f"the mask must be bool {size}, got {mask.dtype} {tuple(mask.shape)}")
    for one, count in ((expand_dense, middle), (depthwise_dense, middle), (project_dense, outputs)):
        if one is not None and (one.dtype != torch.bool or one.shape != (count,)):
            raise UseError(f"a channel mask must be bool ({count},), got {one.dtype} {tuple(one.shape)}")


@torch.library.register_fake("sparsemask::inverted_residual")
def _fake(x, mask, *arguments) -> Tensor:
    project = arguments[6]
    return empty_like(x, project.shape[0], _size(x, arguments[9]))


@register_flop_formula(torch.ops.sparsemask.inverted_residual, get_raw=True)
def _flops(
    x, mask, expand, expand_bias, expand_dense, depthwise, depthwise_bias, depthwise_dense, project, project_bias,
    project_dense, stride, *_, out_val=None,
) -> int:  # fmt: skip
    if mask is None:
        places = x.shape[0] * math.prod(_size(x, stride))
        wide = expand.numel() * x.shape[0] * x.shape[2] * x.shape[3] if expand is not None else 0
        return 2 * (wide + places * (depthwise.numel() + project.numel()))
    before, total = torch.ones(x.shape[1], dtype=torch.bool, device=x.device), 0
    if expand is not None:
        wide = mask if stride == 1 else spread(mask, x.shape[-2:])
        total += flops.conv_multiply_adds(expand, wide, before, expand_dense, POINT)
        before = expand_dense
    total += flops.conv_multiply_adds(depthwise, mask, before, depthwise_dense, around(len(depthwise), stride))
    return 2 * (total + flops.conv_multiply_adds(project, mask, depthwise_dense, project_dense, POINT))
