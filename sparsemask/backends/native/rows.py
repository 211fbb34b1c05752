"""Feature maps as rows: one row of channels for every location, without a copy where the memory is channels-last."""

from __future__ import annotations

import torch
from torch import Tensor


def to_rows(x: Tensor) -> Tensor:
    """Rows (N·locations, C) of x (N, C, *spatial)."""
    last = x.movedim(1, -1)
    return last.contiguous().view(-1, x.shape[1])


def from_rows(rows: Tensor, batch: int, spatial: tuple[int, ...], like: Tensor) -> Tensor:
    """(N, C, *spatial) from rows (N·locations, C); channels last in memory if `like` is, else contiguous."""
    out = rows.view(batch, *spatial, rows.shape[1]).movedim(-1, 1)
    return out if channels_last(like) else out.contiguous()


def channels_last(x: Tensor) -> bool:
    """Whether x (N, C, H, W) or (N, C, D, H, W) lies channels-last in memory."""
    if x.ndim not in (4, 5):
        return False
    return x.is_contiguous(memory_format=torch.channels_last if x.ndim == 4 else torch.channels_last_3d)
