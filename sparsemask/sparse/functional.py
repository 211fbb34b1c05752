"""Plain pieces that every form of the convolution shares."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.sparse.geometry import Geometry

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
ACTIVATIONS = ("none", "relu", "leaky_relu")


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry) -> Tensor:
    """torch's convolution of this geometry."""
    g = geometry
    if g.transposed:
        return _TRANSPOSED[g.dims](x, weight, bias, g.stride, g.padding, g.output_padding, g.groups, g.dilation)
    return _CONV[g.dims](x, weight, bias, g.stride, g.padding, g.dilation, g.groups)


def check_activation(name: str) -> str:
    """The name, if it is "none", "relu" or "leaky_relu" with an optional ":slope"; UseError otherwise."""
    kind, _, slope = name.partition(":")
    try:
        if slope:
            float(slope)
        if kind in ACTIVATIONS and (not slope or kind == "leaky_relu"):
            return name
    except ValueError:
        pass
    raise UseError(f"unknown activation '{name}'; known: none, relu, leaky_relu, leaky_relu:0.1 (any slope)")


def slope_of(name: str) -> float:
    """Slope of a leaky ReLU below zero."""
    return float(name.partition(":")[2] or 0.01)


def activate(y: Tensor, name: str) -> Tensor:
    """The activation, in place where autograd lets it."""
    inplace = not (torch.is_grad_enabled() and y.requires_grad)
    if name == "none":
        return y
    if name == "relu":
        return F.relu(y, inplace=inplace)
    return F.leaky_relu(y, slope_of(name), inplace=inplace)


def along_channels(values: Tensor, ndim: int) -> Tensor:
    """(C,) as (1, C, 1, ...) of `ndim` dimensions."""
    return values.view(1, -1, *[1] * (ndim - 2))


def dense_part(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    in_dense: Tensor,
    out_dense: Tensor,
    geometry: Geometry,
    activation: str,
) -> Tensor:
    """The dense outputs from the dense inputs alone: (N, dense ones of C_out, *out spatial). One group."""
    kept_bias = bias[out_dense] if bias is not None else None
    if not bool(in_dense.any()):
        flat = x.new_zeros(x.shape[0], int(out_dense.sum()), *geometry.output_size(x.shape[2:]))
        return activate(flat + along_channels(kept_bias, x.ndim) if bias is not None else flat, activation)
    pick = weight[in_dense][:, out_dense] if geometry.transposed else weight[out_dense][:, in_dense]
    return activate(convolve(x[:, in_dense], pick, kept_bias, geometry), activation)


def channel_attention(mean: Tensor, weights: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
    """Factors (N, C) in (0, 1) from means (N, C); weights: squeezing and exciting, each with its bias."""
    squeeze, squeeze_bias, excite, excite_bias = weights
    narrow = F.relu(F.linear(mean, squeeze.flatten(1), squeeze_bias))
    return torch.sigmoid(F.linear(narrow, excite.flatten(1), excite_bias))
