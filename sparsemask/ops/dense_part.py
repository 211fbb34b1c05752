"""The part of a sparse mask convolution that is computed everywhere: dense output channels from dense inputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.ops import activation as act
from sparsemask.ops.geometry import Geometry
from sparsemask.ops.layout import from_rows, last_weight, to_rows

_PLAIN = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def dense_conv(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    """torch's own convolution of a geometry."""
    if g.transposed:
        run = _TRANSPOSED[g.dims - 1]
        return run(x, weight, bias, g.stride, g.padding, g.output_padding, g.groups, g.dilation)
    return _PLAIN[g.dims - 1](x, weight, bias, g.stride, g.padding, g.dilation, g.groups)


def dense_weight(weight: Tensor, in_dense: Tensor, out_dense: Tensor, g: Geometry) -> Tensor:
    """The weights with zeros for all but what leads from dense inputs to dense outputs."""
    ins, outs = in_dense.view(g.groups, 1, -1), out_dense.view(g.groups, -1, 1)
    both = (ins & outs).flatten(0, 1)  # (C_out, C_in / groups)
    if g.transposed:
        both = (ins & outs).transpose(1, 2).flatten(0, 1)  # (C_in, C_out / groups)
    return weight.masked_fill(~both.view(*both.shape, *[1] * g.dims), 0)


class DensePart:
    """A layer's dense part: a narrow convolution of the dense channels alone.

    Of grouped convolutions, whose groups differ in dense channels, one of the whole width with zeros among its weights.
    There is at least one dense output channel.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, in_dense: Tensor, out_dense: Tensor, geometry: Geometry):
        g = self._geometry = geometry
        self._n_in, self._n_out = len(in_dense), len(out_dense)
        self._ins, self._outs = in_dense.nonzero().squeeze(1), out_dense.nonzero().squeeze(1)
        if g.groups > 1:
            self._weight = last_weight(dense_weight(weight, in_dense, out_dense, g))
            self._bias = bias * out_dense if bias is not None else None
        else:
            ins, outs = (0, 1) if g.transposed else (1, 0)
            self._weight = last_weight(weight.index_select(outs, self._outs).index_select(ins, self._ins))
            self._bias = bias.index_select(0, self._outs) if bias is not None else None

    def rows(self, x: Tensor, spatial: Sequence[int], activation: str) -> Tensor:
        """Rows (N·locations, C_out) of x (N, C_in, *): dense channels, and zeros in the sparse ones.

        spatial: the output's size.
        """
        if self._geometry.groups > 1:
            return to_rows(self._convolve(x, activation))
        if len(self._ins) == 0:
            narrow = x.new_zeros(x.shape[0] * torch.Size(spatial).numel(), len(self._outs))
            if self._bias is not None:
                act.apply_(activation, narrow.add_(self._bias))
        else:
            if len(self._ins) < self._n_in:
                x = from_rows(to_rows(x).index_select(1, self._ins), x.shape[0], x.shape[2:])
            narrow = to_rows(self._convolve(x, activation))
        if len(self._outs) == self._n_out:
            return narrow
        out = narrow.new_zeros(len(narrow), self._n_out)
        return out.scatter_(1, self._outs.expand(len(narrow), -1), narrow)

    def _convolve(self, x: Tensor, activation: str) -> Tensor:
        return act.apply_(activation, dense_conv(x, self._weight, self._bias, self._geometry))
