"""Feature maps as rows: one row of channels for every location, without a copy where the memory is channels-last."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def channels_last(x: Tensor) -> bool:
    """Whether x (N, C, *spatial) lies channels-last in memory, in any number of dimensions, and not also contiguous."""
    return not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def to_channels_last(x: Tensor) -> Tensor:
    """x (N, C, H, W) or (N, C, D, H, W), channels-last in memory in a way that torch's convolutions recognise.

    A picture permuted to (C, H, W) and given a batch of one lies channels-last, so that `Tensor.contiguous` leaves it,
    but has a batch stride by which convolutions take it for channels-first. All that follows is, too, and slower.
    """
    form = torch.channels_last if x.ndim == 4 else torch.channels_last_3d
    last = x.contiguous(memory_format=form)
    if torch.compiler.is_compiling() or not last.numel() or last.stride(0) == last[0].numel():
        return last
    return last.clone(memory_format=form)


def along_channels(values: Tensor, like: Tensor) -> Tensor:
    """Values of channels (C,), shaped to multiply (N, C, *spatial)."""
    return values.view(1, -1, *[1] * (like.ndim - 2))


def to_rows(x: Tensor) -> Tensor:
    """Rows (N·locations, C) of x (N, C, *spatial); a view where x is channels-last."""
    return x.movedim(1, -1).reshape(-1, x.shape[1])


def from_rows(rows: Tensor, batch: int, spatial: Sequence[int]) -> Tensor:
    """(N, C, *spatial), channels-last, a view of rows (N·locations, C)."""
    return rows.view(batch, *spatial, rows.shape[1]).movedim(-1, 1)


def laid_out_like(y: Tensor, x: Tensor) -> Tensor:
    """y (N, C, *spatial) channels-last in memory if x is, else contiguous; copied only if need be."""
    if not channels_last(x):
        return y.contiguous()
    rows = y.movedim(1, -1)
    return y if rows.is_contiguous() else rows.contiguous().movedim(-1, 1)


def empty_like(x: Tensor, channels: int, spatial: Sequence[int]) -> Tensor:
    """Uninitialised (N, channels, *spatial) in the type, on the device and in the memory layout of x."""
    if channels_last(x):
        return x.new_empty(x.shape[0], *spatial, channels).movedim(-1, 1)
    return x.new_empty(x.shape[0], channels, *spatial)


def last_weight(weight: Tensor) -> Tensor:
    """Channels-last weights, which convolutions of channels-last features ask for."""
    if weight.ndim == 4:
        return weight.contiguous(memory_format=torch.channels_last)
    return weight.contiguous(memory_format=torch.channels_last_3d) if weight.ndim == 5 else weight.contiguous()
