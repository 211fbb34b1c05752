"""Decoders of the wider space by the letter of their description: nothing merged, nothing commuted, nothing shared."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.masks import DOWN, UP
from sparsemask.masks.decoder import FULL, SEPARABLE, DecoderMask
from sparsemask.spaces.connectivity import PrunedNetwork


def resized(x: Tensor, size: torch.Size) -> Tensor:
    return x if x.shape[-2:] == size else F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


def normalised(x: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Batch norm by its formula; running statistics are left alone."""
    if norm.training:
        mean, variance = x.mean((0, 2, 3)), x.var((0, 2, 3), unbiased=False)
    else:
        mean, variance = norm.running_mean, norm.running_var
    shape = (1, -1, 1, 1)
    y = (x - mean.view(shape)) / (variance.view(shape) + norm.eps) ** 0.5
    return y * norm.weight.view(shape) + norm.bias.view(shape)


def by_places(x: Tensor, weight: Tensor, dilation: int = 1) -> Tensor:
    """A 3x3 convolution as the sum over its nine places; depth-wise where the weight has one input channel."""
    height, width = x.shape[-2:]
    padded, total = F.pad(x, [dilation] * 4), 0.0
    for row in range(3):
        for column in range(3):
            y, x0 = row * dilation, column * dilation
            part, factor = padded[..., y : y + height, x0 : x0 + width], weight[..., row, column]
            if weight.shape[1] == 1:
                total = total + part * factor.view(1, -1, 1, 1)
            else:
                total = total + torch.einsum("bchw,oc->bohw", part, factor)
    return total


def mixed(x: Tensor, weight: Tensor) -> Tensor:
    return torch.einsum("bchw,oc->bohw", x, weight[..., 0, 0])


def wide(net: PrunedNetwork, x: Tensor) -> Tensor:
    """Scores of a network of the wider space, from its own weights."""
    mask = net.mask
    assert isinstance(mask, DecoderMask)
    end_points = net.backbone(x)
    outputs: dict[int, Tensor] = {}
    for i in mask.stages:
        stage, size, total = net.decoders[f"Decoders_{i}"], end_points[i].shape[-2:], 0.0
        for j in range(i + 1):
            if mask.connections[i, j, DOWN]:
                total = total + mixed(resized(end_points[j].clamp(0, 6), size), stage.down_convs[str(j)].weight)
            if mask.connections[i, j, UP]:
                source = outputs[j - 1] if j else end_points[0].mean((2, 3), keepdim=True).clamp(0, 6)
                total = total + mixed(resized(source, size), stage.up_convs[str(j)].weight)
        y = normalised(total, stage.bn).clamp(0, 6)
        part = stage.operation
        if mask.operations[i] == FULL:
            y = normalised(by_places(y, part.conv.weight), part.bn).clamp(0, 6)
        elif mask.operations[i] == SEPARABLE:
            y = normalised(by_places(y, part.depthwise.weight), part.bn_depthwise).clamp(0, 6)
            y = normalised(mixed(y, part.pointwise.weight), part.bn_pointwise).clamp(0, 6)
        if mask.context and i == mask.stages[0]:
            block = stage.context
            parts = [
                normalised(by_places(y, conv.weight, dilation), bn).clamp(0, 6)
                for dilation, conv, bn in zip((1, 2, 4), block.convs, block.bns, strict=True)
            ]
            parts.append(normalised(y.mean((2, 3), keepdim=True), block.bn_mean).clamp(0, 6).expand_as(y))
            weight = torch.cat((block.project.weight, block.project_mean.weight), 1)
            y = (y + normalised(mixed(torch.cat(parts, 1), weight), block.bn)).clamp(0, 6)
        outputs[i] = y
    return mixed(outputs[mask.output], net.fc_conv.weight) + net.fc_conv.bias.view(1, -1, 1, 1)
