"""A whole sparse mask block on CUDA: one features buffer, one row list, the 1x1 convolution in the last kernel.

The features of all layers lie side by side in one channels-last buffer (locations, layers x channels), every layer's
dense channels first, so that dropped rows read a prefix. Nothing is cleared beforehand: a layer with dense channels
writes zeros beside them in its dropped rows; one without leaves its dropped rows alone, and who reads it asks the mask.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsemask.backends.triton.launch import (
    WIDEST,
    Rows,
    Shape,
    activation_of,
    arithmetic,
    as_rows,
    blocks,
    dense_first,
    launch,
    on_device,
    row_lists,
    shape_of,
    tile,
    tiles,
)
from sparsemask.ops.block import BlockCall
from sparsemask.ops.geometry import Geometry
from sparsemask.ops.layout import from_rows

_MAPPED = 31  # taps that fit in the bits of an int32


def run_block(call: BlockCall) -> Tensor:
    """A module's layers and their fusion."""
    x, mask, weights, dense = call.x, call.mask, call.weights, call.dense
    collect_weight, collect_bias = call.collect_weight, call.collect_bias
    layers, channels = dense.shape
    spatial = x.shape[2:]
    source = as_rows(x)
    out = x.new_empty(source.shape[0], collect_weight.shape[0])
    if not out.numel():
        return from_rows(out, x.shape[0], spatial)
    shapes = [shape_of(Geometry.of(len(spatial), tuple(w.shape[2:])), spatial, spatial) for w in weights]
    features = x.new_empty(source.shape[0], layers * channels)
    how = {**arithmetic(x, max(source.numel(), features.numel(), out.numel())), **activation_of(call.activation)}
    with on_device(x):
        lists = row_lists(mask, x.shape[0], shapes[0], source.shape[0])
        order, counts = dense_first(dense)
        collect = _packed_collect(collect_weight, order)
        fused = max(channels, collect.shape[1]) <= WIDEST[x.dtype]
        for i, (weight, shape) in enumerate(zip(weights, shapes, strict=True)):
            before = source if i == 0 else features[:, (i - 1) * channels : i * channels]
            after = features[:, i * channels : (i + 1) * channels]
            by = _packed(weight, None if i == 0 else order[i - 1], order[i])
            steps = dict(zip(("W_GROUP", "W_TAP", "W_IN", "W_OUT"), by.stride(), strict=True))
            masked_in = i > 0 and _asks_mask(shape)
            common = dict(
                shape=shape, how=how, lists=lists, in_counts=counts[i - 1 :] if i else None, out_counts=counts[i:]
            )
            if i == layers - 1 and fused:
                _tail(before, by, steps, features, collect, collect_bias, out, i * channels, masked_in, **common)
            else:
                launch(before, by, steps, None, after, kept=True, masked_in=masked_in, **common)
            # Zeros are needed only by a next layer that reads neighbours and cannot ask the mask about them.
            skip = i == layers - 1 or shapes[i + 1].pointwise or _asks_mask(shapes[i + 1])
            launch(before, by, steps, None, after, kept=False, all_in=i == 0, skip_empty=skip, **common)
        if not fused:
            _collect_kept(features, collect, collect_bias, out, lists, how)
        _collect_dropped(features, collect, collect_bias, out, lists, how, counts, channels)
    return from_rows(out, x.shape[0], spatial)


def _asks_mask(shape: Shape) -> bool:
    """Whether a layer can leave out, tap by tap, dropped rows that were never written."""
    return not shape.pointwise and shape.taps <= _MAPPED


def _packed(weight: Tensor, ins: Tensor | None, outs: Tensor) -> Tensor:
    """(1, taps, C_in, C_out) with dense channels first on both sides."""
    by = weight.flatten(2).permute(2, 1, 0)
    by = by.index_select(2, outs) if ins is None else by[:, ins[:, None], outs[None, :]]
    return by.contiguous().unsqueeze(0)


def _packed_collect(weight: Tensor, order: Tensor) -> Tensor:
    """(layers x channels, C_out), rows in the order of the features' columns."""
    layers, channels = order.shape
    columns = (order + channels * torch.arange(layers, device=order.device)[:, None]).reshape(-1)
    return weight.flatten(1).t().index_select(0, columns).contiguous()


def _tail(
    x, by, steps, features, collect, bias, out, before, masked_in, *, shape, how, lists, in_counts, out_counts
) -> None:
    from sparsemask.backends.triton.fused import block_tail

    del out_counts  # kept rows compute every channel
    sizes = blocks(by.shape[2], by.shape[3], x.dtype, kept=True)
    sizes["BLOCK_N"] = tile(by.shape[3], WIDEST[x.dtype])
    strides = {k: v for k, v in steps.items() if k != "W_GROUP"}
    block_tail[lambda meta: (-(-lists.count // meta["BLOCK_M"]),)](
        x, by, features, collect, bias if bias is not None else x, out, lists.rows, lists.kept, lists.mask,
        lists.rows if in_counts is None else in_counts, lists.count, lists.count.bit_length(), *shape.source,
        x.stride(0), features.stride(0), out.stride(0), **strides, C_IN=by.shape[2], C_MID=by.shape[3], BEFORE=before,
        C_OUT=out.shape[1], GEO=shape.geometry, MASK_IN=masked_in, BIASED=bias is not None, **how, **sizes,
        BLOCK_C=tile(out.shape[1], WIDEST[x.dtype]),
    )  # fmt: skip


def _collect_kept(features: Tensor, collect: Tensor, bias: Tensor | None, out: Tensor, lists: Rows, how: dict) -> None:
    by = collect[None, None]
    steps = dict(zip(("W_GROUP", "W_TAP", "W_IN", "W_OUT"), by.stride(), strict=True))
    shape = shape_of(Geometry.of(1, 1), (lists.count,), (lists.count,))
    plain = {**how, **activation_of("none")}
    launch(features, by, steps, bias, out, kept=True, shape=shape, how=plain, lists=lists)


def _collect_dropped(features, collect, bias, out, lists: Rows, how: dict, counts: Tensor, channels: int) -> None:
    from sparsemask.backends.triton.fused import collect_dropped

    plain = {k: v for k, v in how.items() if k not in ("ACT", "SLOPE")}
    sizes = blocks(channels, out.shape[1], features.dtype, kept=False)
    sizes["BLOCK_N"] = tile(out.shape[1], WIDEST[out.dtype])  # every column is wanted here
    collect_dropped[tiles(lists.count, out.shape[1])](
        features, collect, bias if bias is not None else features, out, lists.rows, lists.kept, counts, lists.count,
        lists.count.bit_length(), features.stride(0), out.stride(0), LAYERS=counts.shape[0], C_MID=channels,
        C_OUT=out.shape[1], BIASED=bias is not None, **plain, **sizes,
    )  # fmt: skip
