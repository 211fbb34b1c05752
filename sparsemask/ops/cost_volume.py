"""Cost volumes of stereo matching: how well the left image's features fit the right one's at every disparity.

Group-wise correlation and concatenation as in GwcNet (Guo et al., CVPR 2019, arXiv 1903.04025).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.ops import dispatch
from sparsemask.ops.registration import register


def correlation_volume(left: Tensor, right: Tensor, levels: int, groups: int) -> Tensor:
    """The mean over each group's channels of left(x) · right(x − d), 0 where x < d.

    Args:
        left, right: (N, C, H, W), C a multiple of `groups`.
        levels: disparities d = 0 … levels − 1, in locations of these features.
        groups: of channels.

    Returns:
        (N, groups, levels, H, W), channels last in memory; differentiable.

    Raises:
        UseError: for shapes that do not fit.
    """
    if left.shape != right.shape or left.ndim != 4 or left.shape[1] % groups or levels < 1:
        raise UseError(
            f"no volume of {levels} disparities and {groups} groups from {tuple(left.shape)} and {tuple(right.shape)}"
        )
    return torch.ops.sparsemask.correlation_volume(left, right, levels, groups)


def concatenation_volume(left: Tensor, right: Tensor, levels: int) -> Tensor:
    """Left features beside the shifted right ones, both 0 where x < d: (N, 2·C, levels, H, W)."""
    batch, channels, height, width = left.shape
    volume = left.new_zeros(batch, 2 * channels, levels, height, width)
    for d in range(min(levels, width)):
        volume[:, :channels, d, :, d:] = left[..., d:]
        volume[:, channels:, d, :, d:] = right[..., : width - d]
    return volume


def _run(left: Tensor, right: Tensor, levels: int, groups: int) -> Tensor:
    return dispatch.chosen_for(left).correlation_volume(left, right, levels, groups)


def reference(left: Tensor, right: Tensor, levels: int, groups: int) -> Tensor:
    """Of torch's own operators, level by level."""
    batch, channels, height, width = left.shape
    out = left.new_zeros(batch, levels, height, width, groups).permute(0, 4, 1, 2, 3)
    for d in range(min(levels, width)):
        product = left[..., d:] * right[..., : width - d]
        out[:, :, d, :, d:] = product.unflatten(1, (groups, -1)).mean(2)
    return out


def _fake(left, right, levels, groups):
    batch, _, height, width = left.shape
    return left.new_empty(batch, levels, height, width, groups).permute(0, 4, 1, 2, 3)


def _flops(left, right, levels, groups, *, out_val=None) -> int:
    batch, channels, height, width = left.shape
    pairs = sum(max(0, width - d) for d in range(levels))
    return 2 * batch * channels * height * pairs


def _save(ctx, inputs, output) -> None:
    left, right, ctx.levels, ctx.groups = inputs
    ctx.save_for_backward(left, right)


def _backward(ctx, grad):
    left, right = ctx.saved_tensors
    each = left.shape[1] // ctx.groups
    to_left, to_right = torch.zeros_like(left), torch.zeros_like(right)
    width = left.shape[-1]
    for d in range(min(ctx.levels, width)):
        share = (grad[:, :, d, :, d:] / each).repeat_interleave(each, 1)
        to_left[..., d:] += share * right[..., : width - d]
        to_right[..., : width - d] += share * left[..., d:]
    return to_left, to_right, None, None


register("correlation_volume", _run, fake=_fake, flops=_flops, backward=_backward, save=_save)
