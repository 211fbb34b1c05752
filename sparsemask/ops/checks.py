"""Checks that several operators share: errors of use, before any kernel reads memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.ops import activation as act


def check_flags(flags: Tensor, channels: int, what: str, soft: bool = False) -> None:
    """UseError unless flags are (channels,), and bool or, where `soft`, floating point."""
    kind = flags.dtype == torch.bool or soft and flags.is_floating_point()
    if not kind or flags.shape != (channels,):
        raise UseError(f"the {what} channel mask must be bool ({channels},), got {flags.dtype} {tuple(flags.shape)}")


def check_mask(mask: Tensor, x: Tensor, spatial: Sequence[int]) -> None:
    """UseError unless a mask is bool (N, 1, *spatial)."""
    if mask.dtype != torch.bool:
        raise UseError(f"the operator takes a hard mask (bool), got {mask.dtype}")
    if mask.shape != (x.shape[0], 1, *spatial):
        wanted = (x.shape[0], 1, *spatial)
        raise UseError(f"the mask must have the output's shape {wanted}, got {tuple(mask.shape)}")


def check_bias(bias: Tensor | None, channels: int) -> None:
    """UseError unless a bias, where there is one, is (channels,)."""
    if bias is not None and bias.shape != (channels,):
        raise UseError(f"the bias must have one number for each of {channels} channels, got {tuple(bias.shape)}")


def check_kind(x: Tensor, activation: str, others: Iterable[Tensor | None]) -> None:
    """UseError unless the activation is known, features are floating point and everything is on their device."""
    act.parse(activation)
    if not x.is_floating_point():
        raise UseError(f"features must be floating point, got {x.dtype}")
    device = x.device
    for one in others:
        if one is not None and one.device != device:
            raise UseError(f"features on {device}, but weights or masks on {one.device}")
