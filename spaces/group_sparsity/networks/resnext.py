"""ResNeXt for small images (Xie et al., CVPR 2017), in the lighter form that group sparsity was published with."""

from __future__ import annotations

import functools

import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.spaces.group_sparsity.networks.layers import (
    ResidualBlock,
    blocks_of,
    he_init,
    shortcut_conv,
    stages,
)


class Block(ResidualBlock):
    """1×1, grouped 3×3 (with the stride) and 1×1 to twice the width, added to a shortcut."""

    end = "bn3"

    def __init__(self, n_in: int, width: int, stride: int, cardinality: int) -> None:
        super().__init__()
        n_out = 2 * width
        self.conv1 = nn.Conv2d(n_in, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=cardinality, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, n_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(n_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or n_in != n_out:
            self.shortcut = shortcut_conv(n_in, n_out, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.shortcut(x))

    def without_branch(self) -> nn.Module:
        """The shortcut and the ReLU; what an identity passes on has been through a ReLU already."""
        return Shortcut(self.shortcut) if len(self.shortcut) else nn.Identity()


class Shortcut(nn.Module):
    """What a block computes without its branch."""

    def __init__(self, shortcut: nn.Module) -> None:
        super().__init__()
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.shortcut(x))


class ResNeXt(nn.Module):
    """Images (N, 3, H, W) -> logits (N, n_class): a 1×1 stem of 64 channels and three stages.

    Args:
        depth: 9 n + 2.
        cardinality: groups of the 3×3 convolutions.
        width: channels a group in the first stage; doubled in each next one.
    """

    def __init__(self, depth: int, n_class: int = 10, cardinality: int = 32, width: int = 1) -> None:
        super().__init__()
        count = blocks_of(depth, 2, 9, "resnext")
        self.conv1 = nn.Conv2d(3, 64, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        widths = [cardinality * width * factor for factor in (1, 2, 4)]
        block = functools.partial(Block, cardinality=cardinality)
        self.layer1, self.layer2, self.layer3 = stages(block, 64, widths, count, expansion=2)
        self.linear = nn.Linear(2 * widths[-1], n_class)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(F.adaptive_avg_pool2d(x, 1).flatten(1))
