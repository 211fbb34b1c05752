"""Layers of SMPointSeg on rows, one row a point, under the public checkpoints' names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.ops.point_block import row_linear
from sparsemask.ops.point_conv import SIZE, Level, mixed_point_conv, point_conv
from sparsemask.ops.weight_cache import Derived, last

_folded = Derived()


class RowNorm(nn.BatchNorm1d):
    """Batch norm of rows (R, C), which torch normalises fastest as a channels-last image."""

    def _check_input_dim(self, x: Tensor) -> None:
        return

    def forward(self, rows: Tensor) -> Tensor:
        """Rows (R, C) to rows."""
        image = rows[None, :, None].permute(0, 3, 1, 2)
        return super().forward(image).permute(0, 2, 3, 1).reshape(rows.shape)

    def numbers(self) -> list[Tensor]:
        """The tensors that evaluation depends on."""
        return [self.weight.detach(), self.bias.detach(), self.running_mean, self.running_var]

    def factors(self) -> tuple[Tensor, Tensor]:
        """Scale and shift (C,) in evaluation."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale


class PointConv(nn.Module):
    """A point convolution (K > 1 neighbours) or a 1×1 convolution, without activation.

    Args:
        inputs, outputs: channels.
        neighbours: K; 1 makes it a 1×1 convolution of features alone.
        bias: of the 1×1 convolution.
    """

    def __init__(self, inputs: int, outputs: int, neighbours: int = 1, bias: bool = False):
        super().__init__()
        self.neighbours = neighbours
        if neighbours > 1:
            bound = math.sqrt(6 / neighbours)
            self.conv_dw = nn.Parameter(torch.empty(1, outputs, SIZE, SIZE, SIZE).uniform_(-bound, bound))
        self.conv_1x1 = nn.Conv1d(inputs + 3 * (neighbours > 1), outputs, 1, bias=bias)

    def numbers(self) -> list[Tensor]:
        """The tensors that evaluation depends on."""
        conv = self.conv_1x1
        tensors = [conv.weight.detach()] if conv.bias is None else [conv.weight.detach(), conv.bias.detach()]
        return tensors if self.neighbours == 1 else [*tensors, self.conv_dw.detach()]

    @property
    def weight(self) -> Tensor:
        """(C_out, C_in), or with the three coordinates behind the features (C_out, C_in + 3)."""
        return self.conv_1x1.weight[:, :, 0]

    @property
    def table(self) -> Tensor:
        """(cells, C_out)."""
        return self.conv_dw.flatten(2)[0].t()

    def forward(self, rows: Tensor, level: Level | None = None, mixed: int = 1, coordinates: bool = True) -> Tensor:
        """Rows (R, C_in) to (R, C_out).

        Args:
            rows: one row a point.
            level: points, neighbours and cells; unused by a 1×1 convolution.
            mixed: the batch size to reproduce the public code's mixing of samples; 1: without it.
            coordinates: False: features alone.
        """
        weight = self.weight
        if self.neighbours == 1:
            return F.linear(rows, weight, self.conv_1x1.bias)
        if not coordinates:
            weight = F.pad(weight[:, :-3], (0, 3))
        if mixed > 1:
            return mixed_point_conv(rows, weight, self.table, level, mixed)
        return point_conv(rows, weight, self.table, level)


class BasicConv(nn.Module):
    """A point convolution without bias, batch norm, ReLU; the last two by choice."""

    def __init__(self, inputs: int, outputs: int, neighbours: int = 1, norm: bool = True, relu: bool = True):
        super().__init__()
        self.body = nn.Sequential(PointConv(inputs, outputs, neighbours), *([RowNorm(outputs)] if norm else []))
        self.relu = relu

    @property
    def conv(self) -> PointConv:
        """The convolution."""
        return self.body[0]

    @property
    def norm(self) -> RowNorm | None:
        """The batch norm, or None."""
        return self.body[1] if len(self.body) > 1 else None

    def forward(self, rows: Tensor, level: Level | None = None, mixed: int = 1) -> Tensor:
        """Rows to rows."""
        rows = self.conv(rows, level, mixed)
        rows = rows if self.norm is None else self.norm(rows)
        return F.relu(rows) if self.relu else rows

    def numbers(self) -> list[Tensor]:
        """The tensors that evaluation depends on; faster than listing all parameters and buffers."""
        return [*self.conv.numbers(), *([] if self.norm is None else self.norm.numbers())]

    def folded(self) -> tuple[Tensor, Tensor | None, Tensor]:
        """Copies of weight (C_out, C_in [+ 3]), table (cells, C_out) or None, bias (C_out,), batch norm folded in."""
        weight = self.conv.weight
        scale, shift = (1.0, weight.new_zeros(len(weight))) if self.norm is None else self.norm.factors()
        if self.conv.neighbours > 1:
            return weight.clone(), (self.conv.table * scale).contiguous(), shift
        return weight * (scale if self.norm is None else scale[:, None]), None, shift


class Join(BasicConv):
    """A decoder stage: coarse features copied to the nearest fine points, concatenated with theirs, 1×1, norm, ReLU.

    Features are copied after the convolution, which is linear: there are fewer coarse points.
    """

    def forward(self, coarse: Tensor, nearest: Tensor, skip: Tensor) -> Tensor:
        """coarse (R_c, C_c), nearest (R_f,) int32 rows of it, skip (R_f, C_f) to (R_f, C_f)."""
        width = coarse.shape[1]
        copies = F.linear(coarse, self.conv.weight[:, :width]).index_select(0, nearest)
        return F.relu(self.norm(torch.addmm(copies, skip, self.conv.weight[:, width:].t())))

    def infer(self, coarse: Tensor, nearest: Tensor, skip: Tensor) -> Tensor:
        """The same in evaluation."""
        left, right, bias = folded_of(self, lambda: self._halves(coarse.shape[1]))
        return row_linear(skip, right, bias, row_linear(coarse, left, relu=False), nearest)

    def _halves(self, width: int) -> tuple[Tensor, Tensor, Tensor]:
        weight, _, bias = self.folded()
        return weight[:, :width].contiguous(), weight[:, width:].contiguous(), bias


def folded_of(layer: BasicConv, make=None):
    """Cached result of `make` (default: the layer's `folded`), recomputed when weights or statistics change."""
    make = make or layer.folded
    keep = lambda: tuple(part if part is None else last(part) for part in make())
    return _folded.get(layer.numbers(), keep, type(layer).__name__)
