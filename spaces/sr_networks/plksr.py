"""PLKSR: large kernels on a part of the channels."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.spaces.sr_networks.network import (
    Stage,
    StagedNetwork,
    State,
    colours,
    conv,
    convolution,
    count,
    shuffle_scale,
)

# The kernel sizes of the channel mixers, by their names.
MIXERS = {"CCM": (3, 1), "ICCM": (1, 3), "DCCM": (3, 3)}


class PLKSR(StagedNetwork):
    """Blocks of a channel mixer, a large kernel on the first channels, and element-wise attention.

    Args:
        scale: 1 and more.
        n_feats: channels (64 in the released files).
        n_blocks: blocks (28; 12 in the tiny network).
        kernel: side of the large kernels, odd (17; 13 in the tiny network).
        n_large: channels that large kernels see (a quarter).
        mixer: "DCCM" (3×3, 3×3; as released), "CCM" (3×3, 1×1) or "ICCM" (1×1, 3×3).
        attention: whether blocks have element-wise attention.
    """

    architecture = "PLKSR"
    source = "Lee et al., Partial Large Kernel CNNs for Efficient Super-Resolution, 2024, arXiv 2404.11848"
    end_radius = 1

    def __init__(
        self,
        scale: int = 4,
        n_feats: int = 64,
        n_blocks: int = 28,
        kernel: int = 17,
        n_large: int = 16,
        mixer: str = "DCCM",
        attention: bool = True,
    ):
        super().__init__()
        self.scale = scale
        self.config = {
            "scale": scale, "n_feats": n_feats, "n_blocks": n_blocks, "kernel": kernel, "n_large": n_large,
            "mixer": mixer, "attention": attention,
        }  # fmt: skip
        self.block_radius = sum(size // 2 for size in MIXERS[mixer]) + kernel // 2 + attention
        blocks = (LargeKernelBlock(n_feats, kernel, n_large, MIXERS[mixer], attention) for _ in range(n_blocks))
        self.feats = nn.Sequential(conv(3, n_feats), *blocks, conv(n_feats, 3 * scale**2))
        self.to_img = nn.PixelShuffle(scale)

    @classmethod
    def describe(cls, state: State) -> dict[str, Any] | None:
        """See :meth:`SRNetwork.describe`."""
        if "feats.0.weight" not in state or "feats.1.refine.weight" not in state:
            return None
        if "feats.1.channe_mixer.0.weight" not in state:
            raise UseError("it is a RealPLKSR, whose group norms and upsampling differ")
        if "feats.1.lk.conv.weight" not in state:
            raise UseError("its large kernels are sparse or rectangular ones, of the paper's ablations")
        n_feats, inputs, _ = convolution(state, "feats.0", 3)
        colours(inputs)
        kernels = tuple(convolution(state, f"feats.1.channe_mixer.{k}")[2] for k in (0, 2))
        mixer = next((name for name, sizes in MIXERS.items() if sizes == kernels), None)
        if mixer is None:
            raise UseError(f"its channel mixers have kernels of {kernels[0]} and {kernels[1]}, expected 3 and 1")
        n_large, _, kernel = convolution(state, "feats.1.lk.conv")
        if kernel % 2 == 0 or n_large > n_feats:
            raise UseError(f"a large kernel of side {kernel} on {n_large} of {n_feats} channels")
        length = count(state, r"feats\.(\d+)\.")
        return {
            "scale": shuffle_scale(convolution(state, f"feats.{length - 1}", 3)[0]),
            "n_feats": n_feats,
            "n_blocks": length - 2,
            "kernel": kernel,
            "n_large": n_large,
            "mixer": mixer,
            "attention": "feats.1.attn.f.0.weight" in state,
        }

    def compute(self, x: Tensor) -> Tensor:
        """See :meth:`SRNetwork.compute`."""
        features = x
        for layer in list(self.feats)[:-1]:
            features = layer(features)
        return self.end(features, x)

    def begin(self, x: Tensor) -> Tensor:
        """See :meth:`StagedNetwork.begin`."""
        return self.feats[0](x)

    def stages(self) -> Iterator[Stage]:
        """See :meth:`StagedNetwork.stages`."""
        for number, block in enumerate(self.feats[1:-1], 1):
            yield Stage(block, self.block_radius, module=f"feats.{number}")

    def end(self, features: Tensor, x: Tensor) -> Tensor:
        """See :meth:`StagedNetwork.end`."""
        return self.to_img(self.feats[-1](features) + x.repeat_interleave(self.scale**2, 1))


class LargeKernelBlock(nn.Module):
    """Channel mixer, partial large kernel, attention, 1×1 convolution; the input added (section 3.2)."""

    def __init__(self, channels: int, kernel: int, large: int, mixer: tuple[int, int], attention: bool):
        super().__init__()
        first, second = mixer
        self.channe_mixer = nn.Sequential(  # the released files' spelling
            conv(channels, 2 * channels, first), nn.GELU(), conv(2 * channels, channels, second)
        )
        self.lk = PartialConv(large, kernel)
        self.attn = ElementwiseAttention(channels) if attention else nn.Identity()
        self.refine = conv(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C, H, W) to features."""
        return self.refine(self.attn(self.lk(self.channe_mixer(x)))) + x


class PartialConv(nn.Module):
    """A convolution of the first channels; the others stay."""

    def __init__(self, channels: int, kernel: int):
        super().__init__()
        self.conv = conv(channels, channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C, H, W) to features."""
        large = self.conv.in_channels
        return torch.cat([self.conv(x[:, :large]), x[:, large:]], 1)


class ElementwiseAttention(nn.Module):
    """Features times a weight in (0, 1) at every place and channel, from a 3×3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.f = nn.Sequential(conv(channels, channels), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C, H, W) to features."""
        return x * F.sigmoid(self.f[0](x))
