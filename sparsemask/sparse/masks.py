"""Relaxed masks: Gumbel-softmax over two logits in training, argmax at inference (SMSR, section 3.1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.errors import UseError

DENSE, SPARSE = 0, 1  # of a channel's two logits
DROP, KEEP = 0, 1  # of a location's two logits


def gumbel_mask(logits: Tensor, tau: float = 1.0, dim: int = 1, noise: bool = True) -> Tensor:
    """softmax((logits + Gumbel noise) / tau) along `dim`; no straight-through estimate. tau > 0."""
    if not tau > 0:
        raise UseError(f"tau must be above 0, got {tau}")
    return F.gumbel_softmax(logits, tau, dim=dim) if noise else (logits / tau).softmax(dim)


def channel_logits(channels: int, layers: int) -> nn.Parameter:
    """The free parameter (1, C, L, 2) of a module's channel masks, from U(0, 1)."""
    return nn.Parameter(torch.rand(1, channels, layers, 2))


def hard_dense(logits: Tensor) -> Tensor:
    """bool (L, C): which channels of each layer are dense, from logits (1, C, L, 2). Ties are dense."""
    return ~(logits[0, ..., SPARSE] > logits[0, ..., DENSE]).T


def soft_dense(logits: Tensor, tau: float = 1.0, noise: bool = True) -> Tensor:
    """(L, C) relaxed: each channel's weight as a dense one; one minus it is its weight as a sparse one."""
    return gumbel_mask(logits, tau, -1, noise)[0, ..., DENSE].T


class DataMask(nn.Sequential):
    """Predicts from features (N, C, *spatial) where to compute: a small hourglass, a mask (N, 1, *spatial).

    For pictures and volumes: 3-wide convolution to a quarter of the channels, ReLU, average pooling by 2, convolution,
    ReLU, transposed convolution to two logits; for points (dims=1) two 1×1 convolutions. Sizes that are odd are padded
    by their last values and cropped.

    Args:
        channels: C.
        dims: 1 (points), 2 or 3.
        width: channels of the branch (default: a quarter of C).

    `threshold` is the least P(keep), exclusive, of a kept location; 0.5 is the argmax.
    """

    def __init__(self, channels: int, dims: int = 2, width: int | None = None):
        width = width or max(1, channels // 4)
        if dims == 1:
            super().__init__(nn.Conv1d(channels, width, 1), nn.ReLU(), nn.Conv1d(width, 2, 1))
        elif dims in (2, 3):
            conv = nn.Conv2d if dims == 2 else nn.Conv3d
            pool = nn.AvgPool2d if dims == 2 else nn.AvgPool3d
            up = nn.ConvTranspose2d if dims == 2 else nn.ConvTranspose3d
            super().__init__(
                conv(channels, width, 3, padding=1),
                nn.ReLU(),
                pool(2),
                conv(width, width, 3, padding=1),
                nn.ReLU(),
                up(width, 2, 3, stride=2, padding=1, output_padding=1),
            )
        else:
            raise UseError(f"data masks have 1 to 3 dimensions, not {dims}")
        self.dims, self.threshold, self.mask_mode = dims, 0.5, "soft"

    def logits(self, x: Tensor) -> Tensor:
        """(N, 2, *spatial): drop, keep."""
        size = x.shape[2:]
        if self.dims > 1 and any(s % 2 for s in size):
            pad = [n for s in reversed(size) for n in (0, s % 2)]
            x = F.pad(x, pad, mode="replicate")
        out = super().forward(x)
        for d, s in enumerate(size):
            out = out.narrow(2 + d, 0, s)
        return out

    def forward(self, x: Tensor, tau: float = 1.0) -> Tensor:
        """Soft (float) while masks are learnt; hard: bool in evaluation, float where fixed masks meet training."""
        logits = self.logits(x)
        if self.training and self.mask_mode == "soft":
            return gumbel_mask(logits, tau, 1)[:, KEEP : KEEP + 1]
        hard = self.decide(logits)
        return hard.to(x.dtype) if self.training else hard

    def decide(self, logits: Tensor) -> Tensor:
        """bool (N, 1, *spatial): P(keep) above the threshold."""
        margin = logits[:, KEEP : KEEP + 1] - logits[:, DROP : DROP + 1]
        return margin > torch.logit(torch.tensor(self.threshold, dtype=torch.float64)).item()
