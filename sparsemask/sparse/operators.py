"""The operators that compile, export and the FLOP counter see: ``sparsemask::conv``, ``::block`` and
``::attended_block``.

Executed multiply-adds are counted from the masks themselves. ``mask`` and the channel flags are hard (bool).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsemask.sparse import backends
from sparsemask.sparse.geometry import Geometry


@torch.library.custom_op("sparsemask::conv", mutates_args=())
def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    in_dense: Tensor,
    out_dense: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    output_padding: list[int],
    transposed: bool,
    groups: int,
    activation: str,
    backend: str,
) -> Tensor:
    """One sparse mask convolution with hard masks (SMSR, Wang et al. 2021, section 3.2).

    x (N, C_in, *spatial); weight as torch's convolutions have it; mask bool (N, 1, *out spatial); in_dense (C_in,),
    out_dense (C_out,) bool. Dense outputs are computed everywhere from the dense inputs and at kept locations from
    all; sparse outputs at kept locations, and are 0 elsewhere.
    """
    geometry = _geometry(weight, stride, padding, dilation, output_padding, transposed, groups)
    with torch.no_grad():
        out = backends.run_conv(
            backends.chosen(backend), x, weight, bias, mask, in_dense, out_dense, geometry, activation
        )
    return _owned(out, x)


@conv.register_fake
def _conv_fake(
    x,
    weight,
    bias,
    mask,
    in_dense,
    out_dense,
    stride,
    padding,
    dilation,
    output_padding,
    transposed,
    groups,
    activation,
    backend,
):
    geometry = _geometry(weight, stride, padding, dilation, output_padding, transposed, groups)
    channels = weight.shape[1] * groups if transposed else weight.shape[0]
    out = x.new_empty((x.shape[0], channels, *geometry.output_size(x.shape[2:])))
    return _laid_out(out, x)


@torch.library.custom_op("sparsemask::block", mutates_args=())
def block(
    x: Tensor,
    mask: Tensor,
    weights: list[Tensor],
    dense: Tensor,
    collect_weight: Tensor,
    collect_bias: Tensor | None,
    activation: str,
    backend: str,
) -> Tensor:
    """A module's chain of "same" convolutions without bias, and the 1×1 fusion of all their outputs to dense channels.

    x (N, C, *spatial), mask bool (N, 1, *spatial), dense bool (L, C): each layer's dense channels. SMSR, section 3.2.
    """
    with torch.no_grad():
        out = backends.run_block(
            backends.chosen(backend), x, mask, weights, dense, collect_weight, collect_bias, activation
        )
    return _owned(out, x)


@block.register_fake
def _(x, mask, weights, dense, collect_weight, collect_bias, activation, backend):
    return _laid_out(x.new_empty((x.shape[0], collect_weight.shape[0], *x.shape[2:])), x)


@torch.library.custom_op("sparsemask::attended_block", mutates_args=())
def attended_block(
    x: Tensor,
    mask: Tensor,
    weights: list[Tensor],
    dense: Tensor,
    collect_weight: Tensor,
    collect_bias: Tensor | None,
    squeeze_weight: Tensor,
    squeeze_bias: Tensor,
    excite_weight: Tensor,
    excite_bias: Tensor,
    activation: str,
    backend: str,
) -> Tensor:
    """x + a·block(x): a module with channel attention a = sigmoid(excite(relu(squeeze(mean of the block's output)))).

    squeeze_weight (r, C), excite_weight (C, r), or with trailing ones as 1×1 convolutions have them. RCAN (arXiv
    1807.02758).
    """
    attention = (squeeze_weight, squeeze_bias, excite_weight, excite_bias)
    with torch.no_grad():
        out = backends.run_attended(
            backends.chosen(backend), x, mask, weights, dense, collect_weight, collect_bias, activation, attention
        )
    return _owned(out, x)


@attended_block.register_fake
def _attended_fake(x, mask, weights, dense, collect_weight, collect_bias, *_):
    return _laid_out(x.new_empty((x.shape[0], collect_weight.shape[0], *x.shape[2:])), x)


def _geometry(weight, stride, padding, dilation, output_padding, transposed, groups) -> Geometry:
    return Geometry(
        tuple(weight.shape[2:]),
        tuple(stride),
        tuple(padding),
        tuple(dilation),
        tuple(output_padding),
        transposed,
        groups,
    )


def _format(x: Tensor) -> torch.memory_format:
    """Channels last where x is; else contiguous. What both at once is (one channel, one place) counts as contiguous."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(x.ndim)
    if last is None or x.is_contiguous() or not x.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


def _laid_out(out: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(out, memory_format=_format(x))


def _owned(out: Tensor, x: Tensor) -> Tensor:
    """In the memory order that the fake promised, and nobody else's memory."""
    wanted = _format(x)
    if wanted == torch.contiguous_format:
        return out.contiguous()
    return out.contiguous(memory_format=wanted)


@register_flop_formula(torch.ops.sparsemask.conv, get_raw=True)
def _conv_flop(x, weight, bias, mask, in_dense, out_dense, *more, out_val=None, **__) -> int:
    _stride, _padding, _dilation, _output_padding, transposed, groups = more[:6]
    return 2 * conv_multiply_adds(x, weight, mask, in_dense, out_dense, transposed, groups)


@register_flop_formula(torch.ops.sparsemask.block, get_raw=True)
def _block_flop(x, mask, weights, dense, collect_weight, *_, out_val=None, **__) -> int:
    return 2 * block_multiply_adds(mask, weights, dense, collect_weight, x.shape[1])


@register_flop_formula(torch.ops.sparsemask.attended_block, get_raw=True)
def _attended_flop(
    x, mask, weights, dense, collect_weight, collect_bias, squeeze_weight, *_, out_val=None, **__
) -> int:
    attention = 2 * squeeze_weight.numel() * x.shape[0]
    return 2 * (block_multiply_adds(mask, weights, dense, collect_weight, x.shape[1]) + attention)


def conv_multiply_adds(x, weight, mask, in_dense, out_dense, transposed: bool, groups: int) -> int:
    """Multiply-adds that a layer executes, padding counted as torch counts it (every tap of every output).

    A transposed convolution counts every tap once an input location, shared evenly by the outputs.
    """
    places, kept = mask.numel(), int(mask.sum())
    taps = weight[0, 0].numel()
    n_in, n_out = len(in_dense), len(out_dense)
    if groups > 1:
        per = in_dense.view(groups, -1).sum(1) * out_dense.view(groups, -1).sum(1)
        part = int(per.sum())
    else:
        part = int(in_dense.sum()) * int(out_dense.sum())
    full = n_in * n_out // groups
    total = taps * (kept * full + (places - kept) * part)
    if transposed:
        total = total * (x.shape[0] * x[0, 0].numel()) // max(places, 1)
    return total


def block_multiply_adds(mask, weights, dense, collect_weight, channels: int) -> int:
    """Multiply-adds that a module executes."""
    places, kept = mask.numel(), int(mask.sum())
    total, before, n_in = 0, channels, channels
    for weight, mine in zip(weights, dense, strict=True):
        taps, n_dense = weight[0, 0].numel(), int(mine.sum())
        total += taps * (kept * n_in * len(mine) + (places - kept) * before * n_dense)
        before, n_in = n_dense, len(mine)
    n_out = collect_weight.shape[0]
    return total + kept * dense.numel() * n_out + (places - kept) * int(dense.sum()) * n_out
