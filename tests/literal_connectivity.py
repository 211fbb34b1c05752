"""The connectivity networks by the letter of their formulas: every connection convolved, normalised,
upsampled and weighed by itself. Slow on purpose; the efficient networks must agree with it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sparsemask.spaces.connectivity import FullyDenseNetwork, PrunedNetwork


def up(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if x.shape[-2:] == size else F.interpolate(x, size=size, mode="bilinear", align_corners=True)


def supernet(net: FullyDenseNetwork, x: Tensor, weights: list[Tensor], checkpointed: bool = False) -> Tensor:
    """Logits of `net` with the connection weights given, from its own modules."""
    end_points = net.backbone(x)
    ups = [end_points[0].mean((2, 3), keepdim=True)]
    for i, (stage, w) in enumerate(zip(net.stages, weights, strict=True)):
        size = end_points[i].shape[-2:]
        total = 0
        for j in range(i + 1):
            for column, source, layers in ((0, end_points, stage.down_convs), (1, ups, stage.up_convs)):

                def connection(feature, weight, layers=layers[j], size=size):
                    return weight * up(layers(F.relu6(feature)), size)

                if checkpointed:
                    y = checkpoint(connection, source[j], w[j, column], use_reentrant=False)
                else:
                    y = connection(source[j], w[j, column])
                total = total + y
        ups.append(stage.bn(total))
    return net.fc_conv(F.relu6(ups[-1]))


def pruned(net: PrunedNetwork, x: Tensor) -> Tensor:
    """Logits of `net`, connection by connection."""
    end_points = net.backbone(x)
    ups = [end_points[0].mean((2, 3), keepdim=True)]
    for i, end_point in enumerate(end_points):
        output = None
        if net.mask[i].any():
            stage = net.decoders[f"Decoders_{i}"]
            total = torch.zeros(())
            for j in range(i + 1):
                for column, source, convs in ((0, end_points, stage.down_convs), (1, ups, stage.up_convs)):
                    if net.mask[i, j, column]:
                        total = total + up(convs[str(j)](F.relu6(source[j])), end_point.shape[-2:])
            output = stage.bn(total)
        ups.append(output)
    return net.fc_conv(F.relu6(ups[-1]))
