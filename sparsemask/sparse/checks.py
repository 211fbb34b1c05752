"""Arguments of the sparse operators that do not fit each other: errors of use, before any kernel reads memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.sparse import activation as act
from sparsemask.sparse.geometry import Geometry


def check_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    in_dense: Tensor,
    out_dense: Tensor,
    geometry: Geometry,
    activation: str,
) -> tuple[int, ...]:
    """The size of the output grid of `sparsemask::conv`; UseError for arguments that do not fit."""
    if x.ndim != geometry.dims + 2:
        raise UseError(f"features of {x.ndim - 2} dimensions given to a convolution of {geometry.dims}")
    ins, outs = (0, 1) if geometry.transposed else (1, 0)
    n_in = weight.shape[ins] * (1 if geometry.transposed else geometry.groups)
    n_out = weight.shape[outs] * (geometry.groups if geometry.transposed else 1)
    if x.shape[1] != n_in:
        raise UseError(f"features have {x.shape[1]} channels, the weights take {n_in}")
    if n_in % geometry.groups or n_out % geometry.groups:
        raise UseError(f"{n_in} and {n_out} channels do not fall into {geometry.groups} groups")
    spatial = geometry.output_size(x.shape[2:])
    _check_mask(mask, x, spatial)
    check_flags(in_dense, n_in, "input")
    check_flags(out_dense, n_out, "output")
    _check_bias(bias, n_out)
    _check_kind(x, activation, (weight, bias, mask, in_dense, out_dense))
    return spatial


def check_block(
    x: Tensor,
    mask: Tensor,
    weights: Sequence[Tensor],
    dense: Tensor,
    collect_weight: Tensor,
    collect_bias: Tensor | None,
    activation: str,
) -> None:
    """UseError for arguments of `sparsemask::block` that do not fit."""
    if not weights:
        raise UseError("a block has at least one layer, got no weights")
    _check_mask(mask, x, x.shape[2:])
    channels = weights[0].shape[0]
    if dense.dtype != torch.bool or tuple(dense.shape) != (len(weights), channels):
        wanted = (len(weights), channels)
        raise UseError(f"the channel masks must be bool {wanted}, got {dense.dtype} {tuple(dense.shape)}")
    n_in, kernel = x.shape[1], weights[0].shape[2:]
    for weight in weights:
        fits = weight.ndim == x.ndim and weight.shape[0] == channels and weight.shape[1] == n_in
        if not fits or weight.shape[2:] != kernel or any(k % 2 == 0 for k in kernel):
            raise UseError(
                f"weights {tuple(weight.shape)} do not fit a block of {n_in} to {channels} channels and one odd kernel"
            )
        n_in = channels
    if collect_weight.ndim != x.ndim or any(k != 1 for k in collect_weight.shape[2:]):
        raise UseError(f"the fusion is a 1×1 convolution, got weights {tuple(collect_weight.shape)}")
    if collect_weight.shape[1] != dense.numel():
        raise UseError(f"the 1×1 convolution takes {collect_weight.shape[1]} channels, the layers have {dense.numel()}")
    _check_bias(collect_bias, collect_weight.shape[0])
    _check_kind(x, activation, (mask, dense, collect_weight, collect_bias, *weights))


def check_attention(x: Tensor, collect_weight: Tensor, attention: Sequence[Tensor]) -> None:
    """UseError for the attention of `sparsemask::attended_block` that does not fit its block."""
    channels = collect_weight.shape[0]
    if x.shape[1] != channels:
        raise UseError(f"the input is added: its {x.shape[1]} channels must be the {channels} of the output")
    given = [tuple(one.shape) for one in attention]
    if len(given) == 4 and len(given[0]) >= 2:
        narrow = given[0][0]
        wanted = [(narrow, channels), (narrow,), (channels, narrow), (channels,)]
        if all(a[: len(b)] == b and set(a[len(b) :]) <= {1} for a, b in zip(given, wanted, strict=True)):
            return
    raise UseError(f"attention weights {given} do not squeeze {channels} channels and excite them again")


def check_joined(
    xs: Sequence[Tensor], weight: Tensor, bias: Tensor | None, add: Tensor | None, activation: str
) -> None:
    """UseError for arguments of `sparsemask::joined_conv` that do not fit."""
    if not xs:
        raise UseError("a joined convolution needs at least one feature map")
    first, channels = xs[0], sum(x.shape[1] for x in xs)
    for x in xs:
        if x.shape[:1] != first.shape[:1] or x.shape[2:] != first.shape[2:] or x.dtype != first.dtype:
            raise UseError(
                f"features do not go together: {tuple(first.shape)} {first.dtype}, {tuple(x.shape)} {x.dtype}"
            )
    if weight.ndim != first.ndim or weight.shape[1] != channels or any(k % 2 == 0 for k in weight.shape[2:]):
        raise UseError(f"weights {tuple(weight.shape)} do not fit {channels} channels and odd kernels")
    _check_bias(bias, weight.shape[0])
    wanted = (first.shape[0], weight.shape[0], *first.shape[2:])
    if add is not None and (tuple(add.shape) != wanted or add.dtype != first.dtype):
        raise UseError(f"what is added must be {wanted} {first.dtype}, got {tuple(add.shape)} {add.dtype}")
    _check_kind(first, activation, (*xs, weight, bias, add))


def check_flags(flags: Tensor, channels: int, what: str, soft: bool = False) -> None:
    """UseError unless flags are (channels,), and bool or, where `soft`, floating point."""
    kind = flags.dtype == torch.bool or soft and flags.is_floating_point()
    if not kind or tuple(flags.shape) != (channels,):
        raise UseError(f"the {what} channel mask must be bool ({channels},), got {flags.dtype} {tuple(flags.shape)}")


def _check_mask(mask: Tensor, x: Tensor, spatial: Sequence[int]) -> None:
    if mask.dtype != torch.bool:
        raise UseError(f"the operator takes a hard mask (bool), got {mask.dtype}")
    if tuple(mask.shape) != (x.shape[0], 1, *spatial):
        wanted = (x.shape[0], 1, *spatial)
        raise UseError(f"the mask must have the output's shape {wanted}, got {tuple(mask.shape)}")


def _check_bias(bias: Tensor | None, channels: int) -> None:
    if bias is not None and tuple(bias.shape) != (channels,):
        raise UseError(f"the bias must have one number for each of {channels} channels, got {tuple(bias.shape)}")


def _check_kind(x: Tensor, activation: str, others: Iterable[Tensor | None]) -> None:
    act.parse(activation)
    if not x.is_floating_point():
        raise UseError(f"features must be floating point, got {x.dtype}")
    for one in others:
        if one is not None and one.device != x.device:
            raise UseError(f"features on {x.device}, but weights or masks on {one.device}")
