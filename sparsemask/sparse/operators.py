"""The operators `sparsemask::conv` and `sparsemask::block`: what torch.compile, torch.export and FLOP counters see.

`sparsemask::conv`, with y = act(conv(x) + b) and a hard mask on the output grid: dense output channels are computed
everywhere, at kept locations from all input channels and elsewhere from the dense ones; sparse output channels at kept
locations only, and are exactly 0 elsewhere (Wang et al. 2021, section 3.2). `sparsemask::block` is a module's layers,
each fed by the one before, and the 1×1 convolution over all their outputs. Results are channels-last in memory where x
is, else contiguous.

Gradients reach x, weights and biases (masks are hard: none to them), computed densely.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsemask.sparse import backends, flops, gradients
from sparsemask.sparse.checks import check_block, check_conv
from sparsemask.sparse.geometry import Geometry
from sparsemask.sparse.layout import empty_like, laid_out_like

_library = torch.library.Library("sparsemask", "DEF")
_tags = (torch.Tag.pt2_compliant_tag,)
_library.define(
    "conv(Tensor x, Tensor weight, Tensor? bias, Tensor mask, Tensor in_dense, Tensor out_dense, int[] stride, "
    "int[] padding, int[] dilation, int[] output_padding, bool transposed, int groups, str activation, "
    "str backend) -> Tensor",
    tags=_tags,
)
_library.define(
    "block(Tensor x, Tensor mask, Tensor[] weights, Tensor dense, Tensor collect_weight, Tensor? collect_bias, "
    "str activation, str backend) -> Tensor",
    tags=_tags,
)


@lru_cache(maxsize=256)
def _geometry(kernel, stride, padding, dilation, output_padding, transposed, groups) -> Geometry:
    return Geometry.of(len(kernel), kernel, stride, padding, dilation, output_padding, transposed, groups)


def geometry_of(weight, stride, padding, dilation, output_padding, transposed, groups) -> Geometry:
    """The geometry of the operator's arguments."""
    kernel = tuple(int(size) for size in weight.shape[2:])  # a number also where a graph is traced with open sizes
    each = (kernel, tuple(stride), tuple(padding), tuple(dilation), tuple(output_padding))
    return _geometry(*each, transposed, groups)


def conv(x, weight, bias, mask, in_dense, out_dense, stride, padding, dilation, output_padding, transposed, groups,
         activation, backend) -> Tensor:  # fmt: skip
    """What `sparsemask::conv` runs."""
    g = geometry_of(weight, stride, padding, dilation, output_padding, transposed, groups)
    spatial = check_conv(x, weight, bias, mask, in_dense, out_dense, g, activation)
    weight, bias = weight.to(x.dtype), bias if bias is None else bias.to(x.dtype)
    if not mask.numel():
        return empty_like(x, len(out_dense), spatial)
    server = backends.able(backend, x)
    return laid_out_like(server.conv(x, weight, bias, mask, in_dense, out_dense, g, activation), x)


def block(x, mask, weights, dense, collect_weight, collect_bias, activation, backend) -> Tensor:
    """What `sparsemask::block` runs."""
    check_block(x, mask, weights, dense, collect_weight, collect_bias, activation)
    if not mask.numel():
        return empty_like(x, len(collect_weight), x.shape[2:])
    weights = [weight.to(x.dtype) for weight in weights]
    collect_weight = collect_weight.to(x.dtype)
    collect_bias = collect_bias if collect_bias is None else collect_bias.to(x.dtype)
    server = backends.able(backend, x)
    arguments = (x, mask, weights, dense, collect_weight, collect_bias, activation)
    own = getattr(server, "block", None)
    return laid_out_like(own(*arguments) if own else backends.compose_block(server, *arguments), x)


_library.impl("conv", conv, "CompositeExplicitAutograd")
_library.impl("block", block, "CompositeExplicitAutograd")


@torch.library.register_fake("sparsemask::conv")
def _fake_conv(x, weight, bias, mask, in_dense, out_dense, stride, padding, dilation, output_padding, transposed,
               groups, activation, backend) -> Tensor:  # fmt: skip
    g = geometry_of(weight, stride, padding, dilation, output_padding, transposed, groups)
    return empty_like(x, out_dense.shape[0], g.output_size(x.shape[2:]))


@torch.library.register_fake("sparsemask::block")
def _fake_block(x, mask, weights, dense, collect_weight, collect_bias, activation, backend) -> Tensor:
    return empty_like(x, collect_weight.shape[0], x.shape[2:])


@register_flop_formula(torch.ops.sparsemask.conv, get_raw=True)
def _conv_flops(x, weight, bias, mask, in_dense, out_dense, stride, padding, dilation, output_padding, transposed,
                groups, activation, backend, *, out_val=None) -> int:  # fmt: skip
    g = geometry_of(weight, stride, padding, dilation, output_padding, transposed, groups)
    return 2 * flops.conv_multiply_adds(weight, mask, in_dense, out_dense, g)


@register_flop_formula(torch.ops.sparsemask.block, get_raw=True)
def _block_flops(x, mask, weights, dense, collect_weight, *_, out_val=None) -> int:
    return 2 * flops.block_multiply_adds(mask, weights, dense, collect_weight)


def _save_conv(ctx, inputs, output) -> None:
    x, weight, bias, mask, in_dense, out_dense, *geometry, ctx.activation, _ = inputs
    ctx.geometry = geometry_of(weight, *geometry)
    ctx.biased = bias is not None
    ctx.save_for_backward(x, weight, mask, in_dense, out_dense, output)


def _backward_conv(ctx, grad):
    x, weight, mask, in_dense, out_dense, output = ctx.saved_tensors
    weight = weight.to(x.dtype)  # as the forward had it, under autocast
    found = gradients.conv(grad, x, weight, mask, in_dense, out_dense, output, ctx.geometry, ctx.activation)
    return *found[:2], found[2] if ctx.biased else None, *[None] * 11


def _save_block(ctx, inputs, output) -> None:
    x, mask, weights, dense, collect_weight, collect_bias, ctx.activation, _ = inputs
    ctx.biased = collect_bias is not None
    ctx.save_for_backward(x, mask, dense, collect_weight, *weights)


def _backward_block(ctx, grad):
    x, mask, dense, *weights = ctx.saved_tensors
    collect_weight, *weights = (weight.to(x.dtype) for weight in weights)
    to_x, to_weights, to_collect, to_bias = gradients.block(
        grad, x, mask, weights, dense, collect_weight, ctx.activation
    )
    return to_x, None, to_weights, None, to_collect, to_bias if ctx.biased else None, None, None


torch.library.register_autograd("sparsemask::conv", _backward_conv, setup_context=_save_conv, lib=_library)
torch.library.register_autograd("sparsemask::block", _backward_block, setup_context=_save_block, lib=_library)
