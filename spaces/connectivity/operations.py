"""What follows the sum of a decoder stage in the wider space: 3x3 convolutions at the stage's size, a context block.

All keep the number of channels, take and give activated features, and fold into plain convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.inference import fold_batch_norm
from sparsemask.masks.decoder import FULL, POINTWISE, SEPARABLE

DILATIONS = (1, 2, 4)
"""Of the context block's 3x3 convolutions."""


@dataclass(frozen=True)
class Layers:
    """Classes of convolutions and batch norms."""

    conv: type[nn.Conv2d] = nn.Conv2d
    norm: type[nn.BatchNorm2d] = nn.BatchNorm2d


PLAIN = Layers()


class FullConvolution(nn.Module):
    """A 3x3 convolution, batch norm, relu6.

    Args:
        width: channels in and out.
        momentum: of the running statistics.
        layers: classes of its convolutions and batch norms.
    """

    def __init__(self, width: int, momentum: float, layers: Layers = PLAIN):
        super().__init__()
        self.conv = layers.conv(width, width, 3, padding=1, bias=False)
        self.bn: nn.Module = layers.norm(width, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return F.relu6(self.bn(self.conv(x)), inplace=True)

    def fold(self) -> None:
        """Fold the batch norm into the convolution, in place and irreversibly."""
        self.bn = _folded(self.conv, self.bn)


class SeparableConvolution(nn.Module):
    """A depth-wise 3x3 convolution, batch norm, relu6, a 1x1 convolution, batch norm, relu6.

    Arguments as :class:`FullConvolution`'s.
    """

    def __init__(self, width: int, momentum: float, layers: Layers = PLAIN):
        super().__init__()
        self.depthwise = layers.conv(width, width, 3, padding=1, groups=width, bias=False)
        self.bn_depthwise: nn.Module = layers.norm(width, momentum=momentum)
        self.pointwise = layers.conv(width, width, 1, bias=False)
        self.bn_pointwise: nn.Module = layers.norm(width, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        x = F.relu6(self.bn_depthwise(self.depthwise(x)), inplace=True)
        return F.relu6(self.bn_pointwise(self.pointwise(x)), inplace=True)

    def fold(self) -> None:
        """Fold the batch norms into the convolutions, in place and irreversibly."""
        self.bn_depthwise = _folded(self.depthwise, self.bn_depthwise)
        self.bn_pointwise = _folded(self.pointwise, self.bn_pointwise)


class ContextBlock(nn.Module):
    """Features of a large surrounding, added to those of a place, as DeepLabV3's pyramid (arXiv 1706.05587) but cheap.

    Three depth-wise 3x3 convolutions of dilation 1, 2 and 4 and the global mean, each with batch norm and relu6, are
    concatenated; a 1x1 convolution brings them to the width; batch norm; the sum with the input passes relu6. The
    1x1 convolution of the mean is computed at one place: convolving a concatenation is summing.

    Arguments as :class:`FullConvolution`'s.
    """

    def __init__(self, width: int, momentum: float, layers: Layers = PLAIN):
        super().__init__()
        self.convs = nn.ModuleList(
            layers.conv(width, width, 3, padding=d, dilation=d, groups=width, bias=False) for d in DILATIONS
        )
        self.bns = nn.ModuleList(layers.norm(width, momentum=momentum) for _ in DILATIONS)
        self.bn_mean: nn.Module = layers.norm(width, momentum=momentum)
        self.project = layers.conv(len(DILATIONS) * width, width, 1, bias=False)
        self.project_mean = layers.conv(width, width, 1, bias=False)
        self.bn: nn.Module = layers.norm(width, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        near = [F.relu6(bn(conv(x)), inplace=True) for conv, bn in zip(self.convs, self.bns, strict=True)]
        mean = F.relu6(self.bn_mean(x.mean((2, 3), keepdim=True)))
        return F.relu6(x + self.bn(self.project(torch.cat(near, 1)) + self.project_mean(mean)))

    def fold(self) -> None:
        """Fold the batch norms into the convolutions, in place and irreversibly; the mean's becomes a convolution."""
        for n, conv in enumerate(self.convs):
            self.bns[n] = _folded(conv, self.bns[n])
        width = self.project_mean.in_channels
        scaling = nn.Conv2d(width, width, 1, groups=width, bias=False).to(self.project_mean.weight)
        nn.init.ones_(scaling.weight)
        _folded(scaling, self.bn_mean)
        self.bn_mean = scaling
        self.project_mean.weight.mul_(
            (self.bn.weight * torch.rsqrt(self.bn.running_var + self.bn.eps)).view(-1, 1, 1, 1)
        )
        self.bn = _folded(self.project, self.bn)


def _folded(conv: nn.Conv2d, norm: nn.Module) -> nn.Identity:
    """Fold a batch norm into the convolution before it, in place, unless that was done; what stands in its place."""
    if isinstance(norm, nn.BatchNorm2d):
        fold_batch_norm(conv, norm)
    return nn.Identity()


OPERATION_MODULES: dict[int, type[FullConvolution | SeparableConvolution] | None] = {
    POINTWISE: None,
    SEPARABLE: SeparableConvolution,
    FULL: FullConvolution,
}
"""What computes each operation of :data:`sparsemask.masks.decoder.OPERATIONS` behind a stage's sum."""
