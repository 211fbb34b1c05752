"""The operator `sparsemask::conv`: one sparse mask convolution under hard masks.

With y = act(conv(x) + b): dense output channels are computed everywhere, at kept locations from all input channels and
elsewhere from the dense ones; sparse output channels at kept locations only, and are exactly 0 elsewhere (Wang et al.
2021, section 3.2). The mask lies on the output grid. Results are channels-last in memory where x is, else contiguous.

Gradients reach x, weight and bias (masks are hard: none to them), computed densely by torch's own operators: a kept
output reads all inputs and a dropped dense one the dense inputs, so that a gradient is split into its kept and its
dropped part and each goes back the way it came.

Its reference is :class:`sparsemask.backends.reference.Reference`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from sparsemask.errors import UseError
from sparsemask.ops import activation as act
from sparsemask.ops import dispatch
from sparsemask.ops.checks import check_bias, check_flags, check_kind, check_mask
from sparsemask.ops.geometry import Geometry
from sparsemask.ops.layout import along_channels, empty_like
from sparsemask.ops.registration import register

if TYPE_CHECKING:
    from sparsemask.backends import Backend

SCHEMA = (
    "(Tensor x, Tensor weight, Tensor? bias, Tensor mask, Tensor in_dense, Tensor out_dense, int[] stride, "
    "int[] padding, int[] dilation, int[] output_padding, bool transposed, int groups, str activation, "
    "str backend) -> Tensor"
)


@dataclass(frozen=True, slots=True)
class ConvCall:
    """One sparse mask convolution, its arguments checked.

    Attributes:
        x: features (N, C_in, *spatial).
        weight, bias: as torch's convolution of the geometry has them, in the type of x; the bias (C_out,) or None.
        mask: bool (N, 1, *out spatial), on the output grid; true where a location is kept. At least one location.
        in_dense: bool (C_in,), which channels x has everywhere.
        out_dense: bool (C_out,), which channels the output has everywhere.
        geometry: kernel, stride, padding, ..., groups.
        activation: "none", "relu" or "leaky_relu:SLOPE".
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    mask: Tensor
    in_dense: Tensor
    out_dense: Tensor
    geometry: Geometry
    activation: str

    @property
    def like(self) -> Tensor:
        """The features, whose layout and type the result has."""
        return self.x

    def served_by(self, backend: Backend) -> Tensor:
        """See :meth:`Call.served_by`."""
        return backend.conv(self)


@lru_cache(maxsize=256)
def _geometry(kernel, stride, padding, dilation, output_padding, transposed, groups) -> Geometry:
    return Geometry.of(len(kernel), kernel, stride, padding, dilation, output_padding, transposed, groups)


@lru_cache(maxsize=256)
def _same_size(kernel: tuple[int, ...]) -> Geometry:
    return Geometry.of(len(kernel), kernel)


def same_size(weight: Tensor) -> Geometry:
    """The geometry of an ordinary convolution's weights, odd kernels, that keeps the size."""
    return _same_size(tuple(map(int, weight.shape[2:])))


def geometry_of(weight, stride, padding, dilation, output_padding, transposed, groups) -> Geometry:
    """The geometry of the operator's arguments."""
    kernel = tuple(map(int, weight.shape[2:]))  # a number also where a graph is traced with open sizes
    each = (kernel, tuple(stride), tuple(padding), tuple(dilation), tuple(output_padding))
    return _geometry(*each, transposed, groups)


def _run(x, weight, bias, mask, in_dense, out_dense, stride, padding, dilation, output_padding, transposed, groups,
         activation, backend) -> Tensor:  # fmt: skip
    g = geometry_of(weight, stride, padding, dilation, output_padding, transposed, groups)
    weight, bias = weight.to(x.dtype), bias if bias is None else bias.to(x.dtype)
    call = ConvCall(x, weight, bias, mask, in_dense, out_dense, g, activation)
    spatial = _check(call)
    if not mask.numel():
        return empty_like(x, len(out_dense), spatial)
    return dispatch.serve(call, backend)


def _check(call: ConvCall) -> tuple[int, ...]:
    """The size of the output grid; UseError for arguments that do not fit."""
    x, weight, geometry = call.x, call.weight, call.geometry
    shape, groups, transposed = x.shape, geometry.groups, geometry.transposed
    if len(shape) != geometry.dims + 2:
        raise UseError(f"features of {x.ndim - 2} dimensions given to a convolution of {geometry.dims}")
    outer, inner = weight.shape[:2]
    n_in, n_out = (outer, inner * groups) if transposed else (inner * groups, outer)
    if shape[1] != n_in:
        raise UseError(f"features have {shape[1]} channels, the weights take {n_in}")
    if n_in % groups or n_out % groups:
        raise UseError(f"{n_in} and {n_out} channels do not fall into {groups} groups")
    spatial = geometry.output_size(shape[2:])
    check_mask(call.mask, x, spatial)
    check_flags(call.in_dense, n_in, "input")
    check_flags(call.out_dense, n_out, "output")
    check_bias(call.bias, n_out)
    check_kind(x, call.activation, (weight, call.bias, call.mask, call.in_dense, call.out_dense))
    return spatial


def _fake(x, weight, bias, mask, in_dense, out_dense, stride, padding, dilation, output_padding, transposed, groups,
          activation, backend) -> Tensor:  # fmt: skip
    g = geometry_of(weight, stride, padding, dilation, output_padding, transposed, groups)
    return empty_like(x, out_dense.shape[0], g.output_size(x.shape[2:]))


# What it costs


def multiply_adds(weight: Tensor, mask: Tensor, in_dense: Tensor, out_dense: Tensor, geometry: Geometry) -> int:
    """Multiply-adds of a sparse mask convolution; with masks without content (fake tensors), if everything is kept.

    Counted as torch counts its own convolutions: padded locations are multiplied too. A transposed convolution counts
    the taps that each output reads. The count is the method's, whichever backend computes; `reference` executes more.
    """
    everywhere, kept = _reads(mask, geometry)
    full = in_dense.numel() * out_dense.numel() // geometry.groups
    if kept is None:
        return everywhere * full
    ins, outs = in_dense.view(geometry.groups, -1).sum(1), out_dense.view(geometry.groups, -1).sum(1)
    return kept * full + (everywhere - kept) * int((ins * outs).sum())


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


def _flops(x, weight, bias, mask, in_dense, out_dense, stride, padding, dilation, output_padding, transposed, groups,
           activation, backend, *, out_val=None) -> int:  # fmt: skip
    g = geometry_of(weight, stride, padding, dilation, output_padding, transposed, groups)
    return 2 * multiply_adds(weight, mask, in_dense, out_dense, g)


# Gradients


def gradients(grad: Tensor, call: ConvCall, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to x, weight and bias of a call, from the one of its `output`."""
    x, weight, mask, geometry = call.x, call.weight, call.mask, call.geometry
    grad = act.backward(call.activation, grad, output)
    ins, outs = along_channels(call.in_dense, x), along_channels(call.out_dense, grad)
    kept, dropped = grad * mask, grad * (~mask & outs)
    to_x, to_weight = convolution_backward(kept, x, weight, geometry)
    more_x, more_weight = convolution_backward(dropped, x * ins, weight, geometry)
    to_bias = (kept + dropped).sum([0, *range(2, grad.ndim)])
    return to_x + more_x * ins, to_weight + more_weight, to_bias


def convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, g: Geometry) -> tuple[Tensor, Tensor]:
    """Gradients to x and weight of torch's own convolution."""
    to_x, to_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, g.stride, g.padding, g.dilation, g.transposed, g.output_padding, g.groups,
        [True, True, False],
    )  # fmt: skip
    return to_x, to_weight


def _save(ctx, inputs, output) -> None:
    x, weight, bias, mask, in_dense, out_dense, *geometry, ctx.activation, _ = inputs
    ctx.geometry = geometry_of(weight, *geometry)
    ctx.biased = bias is not None
    ctx.save_for_backward(x, weight, mask, in_dense, out_dense, output)


def _backward(ctx, grad):
    x, weight, mask, in_dense, out_dense, output = ctx.saved_tensors
    weight = weight.to(x.dtype)  # as the forward had it, under autocast
    call = ConvCall(x, weight, None, mask, in_dense, out_dense, ctx.geometry, ctx.activation)
    to_x, to_weight, to_bias = gradients(grad, call, output)
    return to_x, to_weight, to_bias if ctx.biased else None, *[None] * 11


register("conv", _run, schema=SCHEMA, fake=_fake, flops=_flops, backward=_backward, save=_save)
