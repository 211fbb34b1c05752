"""Residual networks for small images (He et al., CVPR 2016, section 4.2), basic and bottleneck blocks."""

from __future__ import annotations

import functools
from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.errors import choose
from sparsemask.spaces.group_sparsity.networks.layers import (
    PadChannels,
    ResidualBlock,
    blocks_of,
    conv3x3,
    he_init,
    shortcut_conv,
    stages,
)

SHORTCUTS = ("A", "C", "strided")


def _shortcut(kind: str, n_in: int, n_out: int, stride: int) -> nn.Module:
    """Shortcut of a block: identity, pooling or striding with zero channels, or a 1×1 convolution."""
    if stride == 1 and n_in == n_out:
        return nn.Identity()
    if kind == "C":
        return shortcut_conv(n_in, n_out, stride)
    before = (n_out - n_in) // 2
    size = stride if kind == "A" else 1  # a mean over one pixel takes every second pixel
    return nn.Sequential(nn.AvgPool2d(size, stride), PadChannels(before, n_out - n_in - before))


class Block(ResidualBlock):
    """Convolutions with batch norms (`body`), added to the shortcut, then a ReLU."""

    def __init__(self, body: list[nn.Module], n_in: int, n_out: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)
        self.downsample = _shortcut(shortcut, n_in, n_out, stride)
        self.act = nn.ReLU()
        self.end = f"body.{len(body) - 1}"

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.downsample(x))

    def without_branch(self) -> nn.Module:
        """The shortcut and the ReLU; what an identity passes on has been through a ReLU already."""
        if isinstance(self.downsample, nn.Identity):
            return nn.Identity() if isinstance(self.act, nn.ReLU) else self.act
        return nn.Sequential(OrderedDict(downsample=self.downsample, act=self.act))


def basic(n_in: int, width: int, stride: int, shortcut: str) -> Block:
    """Two 3×3 convolutions of `width` channels."""
    body = [conv3x3(n_in, width, stride), nn.BatchNorm2d(width), nn.ReLU(), conv3x3(width, width)]
    return Block([*body, nn.BatchNorm2d(width)], n_in, width, stride, shortcut)


def bottleneck(n_in: int, width: int, stride: int, shortcut: str) -> Block:
    """1×1, 3×3 (with the stride) and 1×1 convolutions of `width`, `width` and 4 · `width` channels."""
    n_out = 4 * width
    body = [nn.Conv2d(n_in, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    body += [conv3x3(width, width, stride), nn.BatchNorm2d(width), nn.ReLU()]
    body += [nn.Conv2d(width, n_out, 1, bias=False), nn.BatchNorm2d(n_out)]
    return Block(body, n_in, n_out, stride, shortcut)


class ResNet(nn.Module):
    """Images (N, 3, H, W) -> logits (N, n_class): a stem of 16 channels and three stages of 16, 32, 64 (times 4).

    Args:
        depth: 6 n + 2 with basic blocks, 9 n + 2 with bottlenecks.
        block: "basic" or "bottleneck".
        bias: whether the stem's convolution has a bias.
        shortcut: where sizes change: "A" (mean over 2×2, zero channels on both sides), "strided" (every second pixel,
            zero channels on both sides) or "C" (a strided 1×1 convolution with batch norm).
    """

    def __init__(self, depth: int, n_class: int = 10, block: str = "basic", bias: bool = True, shortcut: str = "A"):
        super().__init__()
        choose(shortcut, SHORTCUTS, "shortcut")
        choose(block, ("basic", "bottleneck"), "block")
        make, expansion, layers = (basic, 1, 6) if block == "basic" else (bottleneck, 4, 9)
        count = blocks_of(depth, 2, layers, "resnet")
        self.shortcut = shortcut
        stem = nn.Sequential(conv3x3(3, 16, bias=bias), nn.BatchNorm2d(16), nn.ReLU())
        block_of = functools.partial(make, shortcut=shortcut)
        self.features = nn.Sequential(stem, *stages(block_of, 16, (16, 32, 64), count, expansion))
        self.classifier = nn.Linear(64 * expansion, n_class)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
