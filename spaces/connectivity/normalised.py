"""Convolve, normalise and weigh all connections that start from one feature, without materialising them.

Batch norm after a 1x1 convolution needs the mean and variance of W x over the batch. With the feature centred
they follow from its covariance, var(W x)_c = W_c cov(x) W_c^T, so that normalisation and connection weight
fold into the matrix, and one product with the folded matrix is all that happens at the feature's size. Where
a feature has more channels than the product (the 1280 of E_0), the variance comes from the plain product.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def normalised_product(
    x: Tensor, convs: Sequence[nn.Conv2d], norms: Sequence[nn.BatchNorm2d], w: Tensor
) -> tuple[Tensor, Tensor]:
    """w_k * BN_k(conv_k(x)) for all connections k of one feature, less a constant per channel.

    Args:
        x: (B, C, H, W), activated.
        convs, norms: K convolutions 1x1 without bias to `depth` channels, and their batch norms.
        w: (K,) connection weights.

    Returns:
        Products (B, K * depth, H, W), and the constants (K * depth,) to be added to them. Running statistics
        move as the batch norms' own would. ValueError, as torch's, where a batch has one value a channel.
    """
    weight = torch.cat([conv.weight for conv in convs]).flatten(1)
    gamma = torch.cat([norm.weight for norm in norms])
    beta = torch.cat([norm.bias for norm in norms])
    w = w.repeat_interleave(convs[0].out_channels)
    products = None
    with torch.autocast(x.device.type, enabled=False):  # statistics of half precision would be worth little
        if norms[0].training:
            x, products, var = _statistics(x.to(weight.dtype), weight, norms)
            scale = w * gamma * torch.rsqrt(var + norms[0].eps)
            constant = w * beta
        else:
            scale = w * gamma * torch.rsqrt(torch.cat([norm.running_var for norm in norms]) + norms[0].eps)
            constant = w * beta - scale * torch.cat([norm.running_mean for norm in norms])
    if products is None:
        return _conv(x, scale[:, None] * weight), constant
    return products * scale[:, None, None], constant


def _statistics(x: Tensor, weight: Tensor, norms: Sequence[nn.BatchNorm2d]) -> tuple[Tensor, Tensor | None, Tensor]:
    """The centred feature, its product where that was needed, the product's variance; statistics move."""
    count = x.numel() // x.shape[1]
    if count < 2:
        raise ValueError(f"expected more than 1 value per channel when training, got {tuple(x.shape)}")
    mean = x.mean((0, 2, 3))
    x = x - mean[:, None, None]
    products = None
    if weight.shape[1] <= weight.shape[0]:
        flat = x.flatten(2)
        covariance = torch.bmm(flat, flat.transpose(1, 2)).sum(0) / count
        var = ((weight @ covariance) * weight).sum(1).clamp_min(0)
    else:
        products = _conv(x, weight)
        var = products.square().mean((0, 2, 3))
    with torch.no_grad():
        _move_running(norms, weight @ mean, var * (count / (count - 1)))
    return x, products, var


def _conv(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight[:, :, None, None])


def _move_running(norms: Sequence[nn.BatchNorm2d], mean: Tensor, var: Tensor) -> None:
    """One step of the running statistics, with the momentum (None: cumulative average) of each batch norm."""
    depth = norms[0].num_features
    for norm, its_mean, its_var in zip(norms, mean.split(depth), var.split(depth), strict=True):
        norm.num_batches_tracked += 1
        momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(its_mean.to(norm.running_mean), momentum)
        norm.running_var.lerp_(its_var.to(norm.running_var), momentum)
