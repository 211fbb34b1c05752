"""MobileNetV2 1.0 with nine end points (Sandler et al. 2018, arXiv 1801.04381)."""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.spaces.backbones.forms import Form, register_forms
from sparsemask.spaces.backbones.registry import register

# Expansion, output channels, repeats, stride of the first block of each stage.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
FIRST, LAST = 32, 1280


class LinearBottleneck(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 linear projection; a shortcut where shapes agree."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, expansion: float, expand: bool, momentum: float
    ):
        super().__init__()
        middle = round(in_channels * expansion)
        self.shortcut = stride == 1 and in_channels == out_channels
        self.expand = expand
        if expand:
            self.conv1 = nn.Conv2d(in_channels, middle, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(middle, momentum=momentum)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, padding=1, groups=middle, bias=False)
        self.bn2 = nn.BatchNorm2d(middle, momentum=momentum)
        self.conv3 = nn.Conv2d(middle, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.expand:
            y = F.relu6(self.bn1(self.conv1(y)), inplace=True)
        y = F.relu6(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        return x + y if self.shortcut else y


class MobileNetV2(nn.Module):
    """Encoder with end points of 1280, 320, 160, 96, 64, 32, 24, 16, 32 channels, deepest first.

    The first and the last are taken after batch norm and before the activation, the others at the (linear)
    output of each stage.

    Args:
        in_channels: channels of the input image.
        first_expansion: whether the first stage has a 1x1 expansion although its factor is 1 (the form of the
            public SparseMask weights: 2 224 960 parameters; torchvision's and timm's lacks it: 2 223 872).
        momentum: of the running statistics.
    """

    channels = (LAST, *(stage[1] for stage in reversed(STAGES)), FIRST)
    strides = (32, 32, 32, 16, 16, 8, 4, 2, 2)

    def __init__(self, in_channels: int = 3, first_expansion: bool = True, momentum: float = 0.1):
        super().__init__()
        self.channels, self.strides = list(self.channels), list(self.strides)
        self.first_expansion = first_expansion
        self.conv1 = nn.Conv2d(in_channels, FIRST, 3, 2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(FIRST, momentum=momentum)
        stages, width = OrderedDict(), FIRST
        for i, (expansion, channels, repeats, stride) in enumerate(STAGES):
            stage = OrderedDict()
            for j in range(repeats):
                expand = expansion > 1 or first_expansion
                stage[f"LinearBottleneck{i}_{j}"] = LinearBottleneck(
                    width, channels, stride if j == 0 else 1, expansion, expand, momentum
                )
                width = channels
            stages[f"Bottlenecks_{i}"] = nn.Sequential(stage)
        self.bottlenecks = nn.Sequential(stages)
        self.conv_last = nn.Conv2d(width, LAST, 1, bias=False)
        self.bn_last = nn.BatchNorm2d(LAST, momentum=momentum)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, deepest: int = 0) -> list[Tensor | None]:
        """(B, C, H, W) -> nine end points, deepest first, of sizes ceil(H / stride); None before `deepest`."""
        x = self.bn1(self.conv1(x))
        end_points: list[Tensor | None] = [x]
        x = F.relu6(x)
        for stage in list(self.bottlenecks)[: len(self.channels) - 1 - deepest]:
            x = stage(x)
            end_points.append(x)
        if not deepest:
            end_points.append(self.bn_last(self.conv_last(x)))
        return [*[None] * deepest, *end_points[::-1]]


register_forms("mobilenet_v2", Form("first_expansion", "bottlenecks.Bottlenecks_0.LinearBottleneck0_0.conv1.weight"))


@register
def mobilenet_v2(in_channels: int = 3, momentum: float = 0.1, first_expansion: bool = True) -> MobileNetV2:
    """Build MobileNetV2 1.0 with nine end points; arguments as :class:`MobileNetV2`."""
    return MobileNetV2(in_channels, first_expansion, momentum)
