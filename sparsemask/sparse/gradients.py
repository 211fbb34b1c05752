"""Gradients of the sparse operators, by torch's dense ones.

A kept output reads all inputs and a dropped dense one the dense inputs, so that a gradient is split into its kept and
its dropped part and each goes back the way it came.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsemask.sparse import activation as act
from sparsemask.sparse.dense_part import dense_conv
from sparsemask.sparse.geometry import Geometry
from sparsemask.sparse.reference import along_channels


def conv(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    in_dense: Tensor,
    out_dense: Tensor,
    output: Tensor,
    geometry: Geometry,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients to x, weight and bias of `sparsemask::conv`; `output` is what it gave."""
    grad = act.backward(activation, grad, output)
    ins, outs = along_channels(in_dense, x), along_channels(out_dense, grad)
    kept, dropped = grad * mask, grad * (~mask & outs)
    to_x, to_weight = _convolution_backward(kept, x, weight, geometry)
    more_x, more_weight = _convolution_backward(dropped, x * ins, weight, geometry)
    to_bias = (kept + dropped).sum([0, *range(2, grad.ndim)])
    return to_x + more_x * ins, to_weight + more_weight, to_bias


def block(
    grad: Tensor,
    x: Tensor,
    mask: Tensor,
    weights: Sequence[Tensor],
    dense: Tensor,
    collect_weight: Tensor,
    activation: str,
) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Gradients to x, weights, collect_weight and collect_bias of `sparsemask::block`; features are computed again."""
    dims, channels = x.ndim - 2, weights[0].shape[0]
    everything = torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
    before, features = [everything, *dense.unbind()], [x]
    shapes = [Geometry.of(dims, tuple(weight.shape[2:])) for weight in weights]
    for weight, ins, outs, shape in zip(weights, before[:-1], before[1:], shapes, strict=True):
        features.append(_masked(features[-1], weight, mask, ins, outs, shape, activation))
    flat = Geometry.of(dims, 1)
    to_features, to_collect = _convolution_backward(grad, torch.cat(features[1:], 1), collect_weight, flat)
    to_bias = grad.sum([0, *range(2, grad.ndim)])
    to_layer, to_weights, to_x = to_features.split(channels, 1), [], torch.zeros_like(x)
    for layer in reversed(range(len(weights))):
        whole = to_layer[layer] + (to_x if layer + 1 < len(weights) else 0)
        to_x, to_weight, _ = conv(
            whole, features[layer], weights[layer], mask, before[layer], before[layer + 1], features[layer + 1],
            shapes[layer], activation,
        )  # fmt: skip
        to_weights.insert(0, to_weight)
    return to_x, to_weights, to_collect, to_bias


def _masked(x, weight, mask, in_dense, out_dense, geometry: Geometry, activation: str) -> Tensor:
    """The dense form without a look at the masks' content, which a traced backward cannot have."""
    whole = act.apply(activation, dense_conv(x, weight, None, geometry))
    part = act.apply(activation, dense_conv(x * along_channels(in_dense, x), weight, None, geometry))
    return torch.where(mask, whole, part * along_channels(out_dense, part))


def _convolution_backward(grad: Tensor, x: Tensor, weight: Tensor, g: Geometry) -> tuple[Tensor, Tensor]:
    to_x, to_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, g.stride, g.padding, g.dilation, g.transposed, g.output_padding, g.groups,
        [True, True, False],
    )  # fmt: skip
    return to_x, to_weight
