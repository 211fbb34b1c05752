"""DenseNet for small images (Huang et al., CVPR 2017), without bottlenecks or compression."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.spaces.group_sparsity.networks.layers import blocks_of, conv3x3, he_init


class DenseLayer(nn.Module):
    """Batch norm, ReLU and a 3×3 convolution whose `growth` channels join the input's."""

    def __init__(self, n_in: int, growth: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.BatchNorm2d(n_in), nn.ReLU(), conv3x3(n_in, growth))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.body(x)], 1)


def _transition(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 1, bias=False), nn.AvgPool2d(2)
    )


class DenseNet(nn.Module):
    """Images (N, 3, H, W) -> logits (N, n_class): three dense blocks, two transitions.

    Args:
        depth: 3 n + 4.
        growth: channels that every layer adds; the stem has twice as many.
    """

    def __init__(self, depth: int = 40, n_class: int = 10, growth: int = 12) -> None:
        super().__init__()
        count = blocks_of(depth, 4, 3, "densenet")
        channels = 2 * growth
        parts: list[nn.Module] = [conv3x3(3, channels)]
        for number in range(3):
            parts.append(nn.Sequential(*(DenseLayer(channels + index * growth, growth) for index in range(count))))
            channels += count * growth
            if number < 2:
                parts.append(_transition(channels))
        parts += [nn.BatchNorm2d(channels), nn.ReLU()]
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Linear(channels, n_class)
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(F.adaptive_avg_pool2d(self.features(x), 1).flatten(1))
