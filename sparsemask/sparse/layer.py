"""Sparse mask convolution as a module: the training form with soft masks, the operator with hard ones."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.sparse import operators  # noqa: F401  (registers the operators)
from sparsemask.sparse.functional import activate, along_channels, check_activation, convolve
from sparsemask.sparse.geometry import Geometry, Sizes


class SparseMaskConv(nn.Module):
    """A convolution whose output channels are dense (everywhere) or sparse (at important locations).

    Args:
        in_channels, out_channels: C_in, C_out.
        kernel_size, stride, padding, dilation, output_padding, groups, transposed: as torch's convolutions; padding
        None keeps the size
            of odd kernels at stride 1.
        dims: 1 (points), 2 or 3.
        bias: whether there is one; it acts before the mask, as the activation does.
        activation: "none", "relu", "leaky_relu" or "leaky_relu:0.1".

    `weight` and `bias` are laid out as torch lays them out. Source: SMSR (arXiv 2006.09603), section 3.2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        *,
        dims: int = 2,
        stride: Sizes = 1,
        padding: Sizes | None = None,
        dilation: Sizes = 1,
        transposed: bool = False,
        output_padding: Sizes = 0,
        groups: int = 1,
        bias: bool = False,
        activation: str = "relu",
    ):
        super().__init__()
        if in_channels % groups or out_channels % groups:
            raise UseError(f"groups {groups} must divide the channels, {in_channels} and {out_channels}")
        self.geometry = Geometry.of(dims, kernel_size, stride, padding, dilation, output_padding, transposed, groups)
        self.in_channels, self.out_channels = in_channels, out_channels
        self.activation, self.backend = check_activation(activation), "auto"
        first = (in_channels, out_channels // groups) if transposed else (out_channels, in_channels // groups)
        self.weight = nn.Parameter(torch.empty(*first, *self.geometry.kernel))
        self.bias = nn.Parameter(torch.empty(out_channels)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """As torch's convolutions begin."""
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        if self.bias is not None:
            bound = 1 / math.sqrt(self.weight[0].numel())
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, mask: Tensor, in_dense: Tensor, out_dense: Tensor) -> Tensor:
        """x (N, C_in, *spatial) -> (N, C_out, *out spatial).

        mask (N, 1, *out spatial); in_dense (C_in,) and out_dense (C_out,): weights as dense channels. Soft masks, or
        training: the formula that gives every location gradients; bool masks in evaluation: the operator, which skips.
        """
        if self.training or mask.dtype != torch.bool:
            return self.masked(x, mask, in_dense, out_dense)
        g = self.geometry
        return torch.ops.sparsemask.conv(
            x,
            self.weight,
            self.bias,
            mask,
            in_dense,
            out_dense,
            list(g.stride),
            list(g.padding),
            list(g.dilation),
            list(g.output_padding),
            g.transposed,
            g.groups,
            self.activation,
            self.backend,
        )

    def masked(self, x: Tensor, mask: Tensor, in_dense: Tensor, out_dense: Tensor) -> Tensor:
        """The training form, with D = W∗(c_d·F), S = W∗(c_s·F): act((o_d + o_s·M)·(D + bias) + M·S).

        The formula's four terms by two convolutions, or by one where nothing dense or nothing sparse comes in, or
        nothing dense goes out.
        """
        kind = x.dtype
        m, o = mask.to(kind), along_channels(out_dense.to(kind), x.ndim)
        share = o + (1 - o) * m
        hard = in_dense.dtype == torch.bool
        if hard and bool(in_dense.all()):
            return self._act(share * convolve(x, self.weight, self.bias, self.geometry))
        if out_dense.dtype == torch.bool and not bool(out_dense.any()):
            return self._act(m * convolve(x, self.weight, self.bias, self.geometry))
        bias = along_channels(self.bias, x.ndim) if self.bias is not None else 0.0
        if hard and not bool(in_dense.any()):
            return self._act(share * bias + m * convolve(x, self.weight, None, self.geometry))
        c = along_channels(in_dense.to(kind), x.ndim)
        dense = convolve(x * c, self.weight, None, self.geometry)
        sparse = convolve(x * (1 - c), self.weight, None, self.geometry)
        return self._act(share * (dense + bias) + m * sparse)

    def _act(self, y: Tensor) -> Tensor:
        return activate(y, self.activation)

    def extra_repr(self) -> str:
        g = self.geometry
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={g.kernel}, stride={g.stride}, "
            f"padding={g.padding}, groups={g.groups}, activation={self.activation}"
        )
