"""The operator `sparsemask::inverted_residual`: expansion, depth-wise 3×3 and projection under one data mask.

All three have channel masks of their own; relu6 follows the first two. Dense channels are computed everywhere from
dense ones, the rest at kept locations; a depth-wise convolution reads zeros where its input was dropped. Where there is
a shortcut the input is added, so that a dropped location is the identity. (Inverted residuals: Sandler et al. 2018,
arXiv 1801.04381; sparse mask convolution: Wang et al. 2021, section 3.2.) For inference, batch norms folded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.ops import conv, dispatch
from sparsemask.ops.conv import ConvCall
from sparsemask.ops.geometry import Geometry
from sparsemask.ops.layout import empty_like
from sparsemask.ops.registration import register

if TYPE_CHECKING:
    from sparsemask.backends import Backend

TOP = 6.0  # of relu6
POINT = Geometry.of(2, 1)


@dataclass(frozen=True, slots=True)
class InvertedResidualCall:
    """Arguments of :func:`inverted_residual`, checked; weights and biases in the type of x."""

    x: Tensor
    mask: Tensor | None
    expand: Tensor | None
    expand_bias: Tensor | None
    expand_dense: Tensor | None
    depthwise: Tensor
    depthwise_bias: Tensor
    depthwise_dense: Tensor
    project: Tensor
    project_bias: Tensor
    project_dense: Tensor
    stride: int
    shortcut: bool

    @property
    def like(self) -> Tensor:
        """The features, whose layout and type the result has."""
        return self.x

    def served_by(self, backend: Backend) -> Tensor:
        """See :meth:`Call.served_by`."""
        return backend.inverted_residual(self)


def spread(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask (N, 1, h, w) on the output grid of a stride-2 module carried to its input's, `size`: its 2×2 blocks'."""
    return mask.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., : size[0], : size[1]]


def around(channels: int, stride: int) -> Geometry:
    """The geometry of the depth-wise convolution."""
    return Geometry.of(2, 3, stride, 1, groups=channels)


_around = lru_cache(maxsize=256)(around)  # for what is never traced


def inverted_residual(
    x: Tensor, mask: Tensor | None, expand: Tensor | None, expand_bias: Tensor | None, expand_dense: Tensor | None,
    depthwise: Tensor, depthwise_bias: Tensor, depthwise_dense: Tensor, project: Tensor, project_bias: Tensor,
    project_dense: Tensor, stride: int, shortcut: bool, backend: str,
) -> Tensor:  # fmt: skip
    """What the operator runs.

    Args:
        x: (N, C, H, W).
        mask: bool (N, 1, h, w), on the output grid; None: everything is kept, whatever the channel masks.
        expand: (M, C, 1, 1), or None with its bias and mask: no expansion, M = C.
        depthwise: (M, 1, 3, 3); project: (C', M, 1, 1); biases (M,), (M,), (C',).
        *_dense: channel masks, bool.
        stride: 1 or 2; shortcut: add x, stride 1.
        backend: one without a form of its own makes it of its convolutions.

    Returns:
        (N, C', h, w), channels-last in memory where x is.

    Raises:
        UseError: for shapes that do not fit, or a backend that cannot compute this.
    """
    _check(x, mask, expand, expand_dense, depthwise, depthwise_dense, project, project_dense, stride, shortcut)
    size = _size(x, stride)
    if not x.shape[0] * size[0] * size[1]:
        return empty_like(x, len(project), size)
    cast = lambda w: w if w is None else w.to(x.dtype)
    call = InvertedResidualCall(
        x, mask, cast(expand), cast(expand_bias), expand_dense, cast(depthwise), cast(depthwise_bias), depthwise_dense,
        cast(project), cast(project_bias), project_dense, stride, shortcut,
    )  # fmt: skip
    return dispatch.serve(call, backend)


def reference(call: InvertedResidualCall) -> Tensor:
    """Of torch's own operators, everything kept."""
    y = call.x
    if call.expand is not None:
        y = F.conv2d(y, call.expand, call.expand_bias).clamp_(0, TOP)
    groups = len(call.depthwise)
    y = F.conv2d(y, call.depthwise, call.depthwise_bias, call.stride, 1, 1, groups).clamp_(0, TOP)
    y = F.conv2d(y, call.project, call.project_bias)
    return y.add_(call.x) if call.shortcut else y


def compose(backend: Backend, call: InvertedResidualCall) -> Tensor:
    """From a backend's convolutions under the mask; where there is none, the reference."""
    x, mask = call.x, call.mask
    if mask is None:
        return reference(call)
    y, before = x, torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
    if call.expand is not None:
        wide = mask if call.stride == 1 else spread(mask, x.shape[-2:])
        expansion = ConvCall(y, call.expand, call.expand_bias, wide, before, call.expand_dense, POINT, "none")
        y, before = backend.conv(expansion).clamp_(0, TOP), call.expand_dense
    geometry, middle = _around(len(call.depthwise), call.stride), call.depthwise_dense
    y = backend.conv(ConvCall(y, call.depthwise, call.depthwise_bias, mask, before, middle, geometry, "none"))
    y = y.clamp_(0, TOP)
    y = backend.conv(ConvCall(y, call.project, call.project_bias, mask, middle, call.project_dense, POINT, "none"))
    return y.add_(x) if call.shortcut else y


def _size(x: Tensor, stride: int) -> tuple[int, int]:
    """(h, w) of the output."""
    return -(-x.shape[2] // stride), -(-x.shape[3] // stride)


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


def _fake(x, mask, *arguments) -> Tensor:
    project = arguments[6]
    return empty_like(x, project.shape[0], _size(x, arguments[9]))


def count_flops(
    x, mask, expand, expand_bias, expand_dense, depthwise, depthwise_bias, depthwise_dense, project, project_bias,
    project_dense, stride, *_, out_val=None,
) -> int:  # fmt: skip
    """The operator's FLOP formula."""
    if mask is None:
        locations = x.shape[0] * math.prod(_size(x, stride))
        wide = expand.numel() * x.shape[0] * x.shape[2] * x.shape[3] if expand is not None else 0
        return 2 * (wide + locations * (depthwise.numel() + project.numel()))
    before, total = torch.ones(x.shape[1], dtype=torch.bool, device=x.device), 0
    if expand is not None:
        wide = mask if stride == 1 else spread(mask, x.shape[-2:])
        total += conv.multiply_adds(expand, wide, before, expand_dense, POINT)
        before = expand_dense
    total += conv.multiply_adds(depthwise, mask, before, depthwise_dense, around(len(depthwise), stride))
    return 2 * (total + conv.multiply_adds(project, mask, depthwise_dense, project_dense, POINT))


register("inverted_residual", inverted_residual, fake=_fake, flops=count_flops)
