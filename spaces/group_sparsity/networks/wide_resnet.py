"""Wide residual networks (Zagoruyko and Komodakis, BMVC 2016)."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.spaces.group_sparsity.networks.layers import (
    ResidualBlock,
    blocks_of,
    conv3x3,
    he_init,
    stages,
)


class Block(ResidualBlock):
    """Batch norm and ReLU before each of two biased 3×3 convolutions; the second has the stride."""

    end = "conv2"

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(n_in)
        self.conv1 = conv3x3(n_in, n_out, bias=True)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.conv2 = conv3x3(n_out, n_out, stride, bias=True)
        self.shortcut = nn.Sequential()
        if stride != 1 or n_in != n_out:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(F.relu(self.bn1(x)))
        return self.conv2(F.relu(self.bn2(y))) + self.shortcut(x)

    def without_branch(self) -> nn.Module:
        """The shortcut."""
        return nn.Sequential(OrderedDict(shortcut=self.shortcut)) if len(self.shortcut) else nn.Identity()


class WideResNet(nn.Module):
    """Images (N, 3, H, W) -> logits (N, n_class): a stem of 16 channels and stages of 16, 32, 64 times `widen`.

    Args:
        depth: 6 n + 4.
        widen: factor on the width.
    """

    def __init__(self, depth: int = 16, n_class: int = 100, widen: int = 10) -> None:
        super().__init__()
        count = blocks_of(depth, 4, 6, "wide resnet")
        self.conv1 = conv3x3(3, 16, bias=True)
        widths = [width * widen for width in (16, 32, 64)]
        self.layer1, self.layer2, self.layer3 = stages(Block, 16, widths, count)
        self.bn1 = nn.BatchNorm2d(widths[-1], momentum=0.9)
        self.linear = nn.Linear(widths[-1], n_class)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer3(self.layer2(self.layer1(self.conv1(x))))
        return self.linear(F.adaptive_avg_pool2d(F.relu(self.bn1(x)), 1).flatten(1))
