"""RLFN, the winner of NTIRE 2022's challenge on efficient super-resolution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.spaces.sr_networks.network import (
    Stage,
    StagedNetwork,
    State,
    colours,
    conv,
    convolution,
    count,
    has_all,
    shuffle_scale,
)

_SLOPE = 0.05
_POOL, _POOL_STRIDE = 7, 3
_WINDOW, _STRIDE = 3 + 2 * (_POOL - 1), 2 * _POOL_STRIDE  # of the pooled map's places, in pixels


class RLFN(StagedNetwork):
    """Residual local feature blocks with enhanced spatial attention.

    Args:
        scale: 1 and more.
        n_feats: channels between the blocks (52; 48 in RLFN-S, 46 in the challenge's network).
        n_blocks: blocks (6; 4 in the challenge's network).
        n_mid: channels inside a block; None: as between them.
        n_attention: channels of the attention's branch.

    The released weights take images of 0 to 255.
    """

    architecture = "RLFN"
    source = "Kong et al., Residual Local Feature Network for Efficient Super-Resolution, 2022, arXiv 2205.07514"
    value_range = 255.0
    smallest = _WINDOW
    smallest_traced = _WINDOW + _STRIDE + 1  # two values of the pooled map: one would be enlarged by another program

    def __init__(
        self, scale: int = 4, n_feats: int = 52, n_blocks: int = 6, n_mid: int | None = None, n_attention: int = 16
    ):
        super().__init__()
        n_mid = n_mid or n_feats
        self.scale, self.n_blocks = scale, n_blocks
        self.config = {
            "scale": scale, "n_feats": n_feats, "n_blocks": n_blocks, "n_mid": n_mid, "n_attention": n_attention
        }  # fmt: skip
        self.conv_1 = conv(3, n_feats)
        for number in range(1, n_blocks + 1):
            self.add_module(f"block_{number}", ResidualLocalFeatureBlock(n_feats, n_mid, n_attention))
        self.conv_2 = conv(n_feats, n_feats)
        self.upsampler = nn.Sequential(conv(n_feats, 3 * scale**2), nn.PixelShuffle(scale))

    @classmethod
    def describe(cls, state: State) -> dict[str, Any] | None:
        """See :meth:`SRNetwork.describe`."""
        if not has_all(state, ["conv_1.weight", "block_1.c1_r.weight", "block_1.esa.conv1.weight", "conv_2.weight"]):
            return None
        n_feats, inputs, _ = convolution(state, "conv_1", 3)
        colours(inputs)
        return {
            "scale": shuffle_scale(convolution(state, "upsampler.0", 3)[0]),
            "n_feats": n_feats,
            "n_blocks": count(state, r"block_(\d+)\.", 1),
            "n_mid": convolution(state, "block_1.c1_r", 3)[0],
            "n_attention": convolution(state, "block_1.esa.conv1", 1)[0],
        }

    @property
    def blocks(self) -> list[ResidualLocalFeatureBlock]:
        """The blocks in order."""
        return [self.get_submodule(f"block_{number}") for number in range(1, self.n_blocks + 1)]  # type: ignore[misc]

    def compute(self, x: Tensor) -> Tensor:
        """See :meth:`SRNetwork.compute`."""
        features = self.begin(x)
        for block in self.blocks:
            features = block(features)
        return self.end(features, x)

    def begin(self, x: Tensor) -> Tensor:
        """See :meth:`StagedNetwork.begin`."""
        return self.conv_1(x)

    def stages(self) -> Iterator[Stage]:
        """See :meth:`StagedNetwork.stages`."""
        for number, block in enumerate(self.blocks, 1):
            name = f"block_{number}"
            yield Stage(block.fuse, 3, block.esa.attend_in_bands, name, f"{name}.esa")

    def end(self, features: Tensor, x: Tensor) -> Tensor:
        """See :meth:`StagedNetwork.end`."""
        return self.upsampler(self.conv_2(features) + self.conv_1(x))


class ResidualLocalFeatureBlock(nn.Module):
    """Three 3×3 convolutions with leaky ReLU, the input added, a 1×1 convolution, and attention (section 3.2)."""

    def __init__(self, channels: int, middle: int, attention: int):
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = conv(channels, middle), conv(middle, middle), conv(middle, channels)
        self.c5 = conv(channels, channels, 1)
        self.esa = SpatialAttention(channels, attention)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C, H, W) to features."""
        return self.esa(self.fuse(x))

    def fuse(self, x: Tensor) -> Tensor:
        """Everything before the attention; depends on three pixels around."""
        y = x
        for layer in (self.c1_r, self.c2_r, self.c3_r):
            y = F.leaky_relu(layer(y), _SLOPE)
        return self.c5(y + x)


class SpatialAttention(nn.Module):
    """Enhanced spatial attention (RFANet, CVPR 2020) as RLFN has it: one 3×3 convolution of a pooled map.

    The pooled map is resized to the image's size, so that a place in it depends on the size of the whole image.
    """

    def __init__(self, channels: int, narrow: int):
        super().__init__()
        self.conv1, self.conv_f = conv(channels, narrow, 1), conv(narrow, narrow, 1)
        self.conv2 = nn.Conv2d(narrow, narrow, 3, stride=2)
        self.conv3, self.conv4 = conv(narrow, narrow), conv(narrow, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C, H, W), at least 15×15, times a weight in (0, 1) at every place and channel."""
        narrow = self.conv1(x)
        pooled = self.conv3(self._pooled(narrow))
        resized = F.interpolate(pooled, x.shape[-2:], mode="bilinear", align_corners=False)
        return x * self._weight(narrow, resized)

    def _pooled(self, narrow: Tensor) -> Tensor:
        return F.max_pool2d(self.conv2(narrow), _POOL, _POOL_STRIDE)

    def _weight(self, narrow: Tensor, resized: Tensor) -> Tensor:
        return torch.sigmoid(self.conv4(resized + self.conv_f(narrow)))

    def attend_in_bands(self, x: Tensor, rows: int) -> None:
        """Compute :meth:`forward` in place, so many rows of (N, C, H, W) at a time."""
        height, width = x.shape[-2:]
        total = ((height - 3) // 2 + 1 - _POOL) // _POOL_STRIDE + 1
        step = max(1, rows // _STRIDE)
        pieces = [
            self._pooled(self.conv1(x[..., top * _STRIDE : (min(top + step, total) - 1) * _STRIDE + _WINDOW, :]))
            for top in range(0, total, step)
        ]
        pooled = self.conv3(torch.cat(pieces, 2))
        pooled = F.interpolate(pooled, (total, width), mode="bilinear", align_corners=False)
        for top in range(0, height, rows):
            band = x[..., top : top + rows, :]
            band.mul_(self._weight(self.conv1(band), _resized_rows(pooled, height, top, band.shape[-2])))


def _resized_rows(x: Tensor, height: int, top: int, rows: int) -> Tensor:
    """Rows `top` to `top + rows` of (N, C, h, W) resized to `height` rows by bilinear interpolation."""
    source = (
        (torch.arange(top, top + rows, dtype=x.dtype, device=x.device) + 0.5) * (x.shape[-2] / height) - 0.5
    ).clamp(min=0)
    upper = source.long().clamp(max=x.shape[-2] - 1)
    lower = (upper + 1).clamp(max=x.shape[-2] - 1)
    return torch.lerp(x[..., upper, :], x[..., lower, :], (source - upper)[:, None])
