"""Cost volumes and masked 3-D convolutions of stereo networks in standard operators, for export."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.spaces.smstereo.layers import fold
from sparsemask.spaces.smstereo.mask_module import MaskedConv


class PlainConv(nn.Module):
    """A convolution under hard masks, computed densely, each product once.

    Sparse outputs are convolutions of all inputs times the mask; dense outputs use sparse inputs at kept voxels only.

    Args:
        conv: the masked convolution.
        before: dense input channels, bool (C_in,); None: all.
        dense: dense output channels, bool (C_out,).
    """

    def __init__(self, conv: MaskedConv, before: Tensor | None, dense: Tensor):
        super().__init__()
        self.conv, self.relu = conv.pair[0], conv.relu
        weight, bias = fold(*conv.pair)
        weight = weight if self.conv.transposed else weight.transpose(0, 1)  # (inputs, outputs, ...) until sliced
        before = torch.ones(len(weight), dtype=torch.bool) if before is None else before
        order = torch.cat([dense.nonzero()[:, 0], (~dense).nonzero()[:, 0]])
        self.register_buffer("back", torch.argsort(order))
        self.parts = nn.ParameterDict()
        for name, ins, outs in (("sparse", None, ~dense), ("dense", before, dense), ("across", ~before, dense)):
            ins = torch.ones_like(before) if ins is None else ins
            if ins.any() and outs.any():
                part = weight[ins][:, outs]
                part = part if self.conv.transposed else part.transpose(0, 1)
                self.parts[name] = nn.Parameter(part.contiguous(), False)
        self.count = int(dense.sum())
        self.register_buffer("dense_bias", bias[dense].view(1, -1, 1, 1, 1))
        self.register_buffer("sparse_bias", bias[~dense].view(1, -1, 1, 1, 1))
        for name, flags in (("dense_ins", before), ("sparse_ins", ~before)):
            self.register_buffer(name, flags.nonzero()[:, 0])

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """x (N, C, D, H, W), zero in sparse channels of dropped voxels, mask (N, 1, ...) on the output's grid."""
        outputs = []
        if self.count:
            total = self.dense_bias
            if "dense" in self.parts:
                total = total + self._run("dense", x.index_select(1, self.dense_ins))
            if "across" in self.parts:
                total = total + mask * self._run("across", x.index_select(1, self.sparse_ins))
            outputs.append(F.relu(total) if self.relu else total)
        if "sparse" in self.parts:
            y = self._run("sparse", x) + self.sparse_bias
            outputs.append(mask * (F.relu(y) if self.relu else y))
        return torch.cat(outputs, 1).index_select(1, self.back)

    def _run(self, name: str, x: Tensor) -> Tensor:
        return _convolve(self.conv, x, self.parts[name], None)


class OpenConv(nn.Module):
    """The same convolution without masks.

    Args:
        conv: the masked convolution.
    """

    def __init__(self, conv: MaskedConv):
        super().__init__()
        self.conv, self.relu = conv.pair[0], conv.relu
        weight, bias = fold(*conv.pair)
        self.weight, self.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)

    def forward(self, x: Tensor) -> Tensor:
        """x (N, C, D, H, W)."""
        y = _convolve(self.conv, x, self.weight, self.bias)
        return F.relu(y) if self.relu else y


def _convolve(c: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if c.transposed:
        return F.conv_transpose3d(x, weight, bias, c.stride, c.padding, c.output_padding, 1, c.dilation)
    return F.conv3d(x, weight, bias, c.stride, c.padding, c.dilation)


def plain_volume(left: Tensor, right: Tensor, levels: int, groups: int) -> Tensor:
    """As :func:`sparsemask.ops.cost_volume.correlation_volume`, for dynamic sizes."""
    products = [(a * b).unflatten(1, (groups, -1)).mean(2) for a, b in shifted(left, right, levels)]
    return torch.stack(products, 2)


def shifted(left: Tensor, right: Tensor, levels: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield features for every disparity d from 0: (left, right at x − d), both 0 where x < d.

    Args:
        left: (N, C, H, W).
        right: (N, C, H, W).
        levels: number of disparities.
    """
    width = left.shape[-1]
    wide = F.pad(right, (levels, 0))
    inside = F.pad(torch.ones_like(left[:, :1]), (levels, 0))
    for d in range(levels):
        columns = torch.arange(width) + (levels - d)
        yield left * inside.index_select(3, columns), wide.index_select(3, columns)
