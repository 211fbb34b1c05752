"""Sparse mask convolution with soft masks: every location computed, gradients for everything."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsemask.ops import activation as act
from sparsemask.ops.dense_part import dense_conv
from sparsemask.ops.geometry import Geometry
from sparsemask.ops.layout import along_channels


def masked_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    in_dense: Tensor | None,
    out_dense: Tensor | None,
    geometry: Geometry,
    activation: str,
    norm: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The training form (Wang et al. 2021, section 3.2): with A = W∗(c_d·x), B = W∗(c_s·x) and data mask M,

        act((o_d + o_s·M)·A + M·B),

    where c and o are the shares of dense (d) and sparse (s = 1 − d) input and output channels. With hard masks it
    equals the operator `sparsemask::conv`. Bias b and norm act before the mask: with the gate g = o_d + o_s·M,
    g·act(norm(A + M/g·B + b)), the same formula where there are none (activations commute with positive factors).

    Args:
        x: (N, C_in, *spatial).
        weight: as torch's convolution of the geometry has it.
        bias: (C_out,), or None.
        mask: (N, 1, *out spatial), soft or hard.
        in_dense: (C_in,), soft or hard; None: all dense.
        out_dense: (C_out,), soft or hard; None: all dense.
        geometry: kernel, stride, padding, ..., groups.
        activation: "none", "relu" or "leaky_relu:SLOPE".
        norm: before the activation.

    Returns:
        (N, C_out, *out spatial).
    """
    mask = mask.to(x.dtype) if not mask.is_floating_point() else mask
    a, b = _parts(x, weight, in_dense, geometry)
    if out_dense is None:
        gate = None
    else:
        dense = along_channels(out_dense.to(mask.dtype), x)
        gate = dense + (1 - dense) * mask
    if bias is None and norm is None:
        z = a if a is None or gate is None else gate * a
        return act.apply(activation, z if b is None else mask * b if z is None else torch.addcmul(z, mask, b))
    if b is not None:
        ratio = mask if gate is None else mask / gate.clamp_min(torch.finfo(gate.dtype).eps)
        a = ratio * b if a is None else torch.addcmul(a, ratio, b)
    if bias is not None:
        a = a + along_channels(bias, a)
    y = act.apply(activation, a if norm is None else norm(a))
    return y if gate is None else gate * y


def _parts(
    x: Tensor, weight: Tensor, in_dense: Tensor | None, geometry: Geometry
) -> tuple[Tensor | None, Tensor | None]:
    """A and B; None for the one whose channel set is empty, as far as that can be seen."""
    if in_dense is not None and not in_dense.requires_grad and not torch.compiler.is_compiling():
        if bool((in_dense == 1).all()):
            in_dense = None
        elif bool((in_dense == 0).all()):
            return None, dense_conv(x, weight, None, geometry)
    if in_dense is None:
        return dense_conv(x, weight, None, geometry), None
    dense = along_channels(in_dense.to(x.dtype), x)
    return dense_conv(x * dense, weight, None, geometry), dense_conv(x * (1 - dense), weight, None, geometry)
