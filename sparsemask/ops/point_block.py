"""A sparse block of point convolutions in evaluation: dense channels at all points, sparse ones at kept points only.

With hard masks a layer's weights fall into parts (Wang et al., TPAMI 2022): dense inputs to all outputs, computed at
all points since kept points read them as neighbours, and sparse inputs to all outputs, which only kept points have.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.ops import dispatch
from sparsemask.ops.point_conv import Level, aggregate_rows
from sparsemask.ops.registration import register


@dataclass
class Folded:
    """A block's weights, batch norms folded in."""

    weights: list[Tensor]
    """Of each layer, (C, C_in + 3)."""
    tables: list[Tensor]
    """(cells, C)."""
    biases: list[Tensor]
    """(C,)."""
    tail: Tensor
    """(C, L·C)."""
    tail_bias: Tensor
    kept_bias: Tensor
    """The fusion's bias at kept points; another one only for the public code's mistake."""
    shortcut: Tensor | None
    """(C, C_in), or None: the input itself."""


def sparse_block(rows: Tensor, level: Level, mask: Tensor, dense: Tensor, folded: Folded, gated: bool = True) -> Tensor:
    """ReLU(fusion of the layers' masked outputs + shortcut).

    Args:
        rows: (R, C_in).
        level: where the points are.
        mask: bool (R,), the kept points.
        dense: bool (L, C), the dense channels of each layer.
        gated: whether sparse inputs reach dense outputs at kept points only.

    Returns:
        (R, C). What is multiplied is counted by torch's flop counters.
    """
    f = folded
    return torch.ops.sparsemask.point_block(
        rows, level.xyz, level.neighbours, level.cells, mask, dense, f.weights, f.tables, f.biases, f.tail,
        f.tail_bias, f.kept_bias, f.shortcut, gated,
    )  # fmt: skip


def _run_block(
    rows: Tensor, xyz: Tensor, neighbours: Tensor, cells: Tensor, mask: Tensor, dense: Tensor, weights: list[Tensor],
    tables: list[Tensor], biases: list[Tensor], tail: Tensor, tail_bias: Tensor, kept_bias: Tensor,
    shortcut: Tensor | None, gated: bool,
) -> Tensor:  # fmt: skip
    folded = Folded(weights, tables, biases, tail, tail_bias, kept_bias, shortcut)
    level = Level(xyz.to(rows.dtype), neighbours, cells)
    return dispatch.chosen_for(rows).point_block(rows, level, mask, dense, folded, gated)


def block_by_torch(rows: Tensor, level: Level, mask: Tensor, dense: Tensor, f: Folded, gated: bool) -> Tensor:
    """In plain PyTorch: outputs are gathered, so that only theirs are computed."""
    kept, dropped = mask.nonzero()[:, 0], (~mask).nonzero()[:, 0]
    x, before = rows, torch.ones(rows.shape[1], dtype=torch.bool, device=rows.device)
    out = f.tail_bias.repeat(len(rows), 1)
    out[kept] = f.kept_bias
    out += rows if f.shortcut is None else rows @ f.shortcut.t()
    for weight, table, bias, own, tail in zip(
        f.weights, f.tables, f.biases, dense, f.tail.split(dense.shape[1], 1), strict=True
    ):
        rel = weight[:, -3:].t().contiguous()
        part = torch.addmm(level.xyz @ rel, x[:, before], weight[:, :-3][:, before].t())
        full = part
        if not bool(before.all()):
            full = part.index_add(0, kept, x[kept][:, ~before] @ weight[:, :-3][:, ~before].t())
        y = x.new_zeros(len(x), len(weight))
        y[kept] = _some(full, level, rel, table, bias, kept)
        if bool(own.any()):
            g = (part if gated else full)[:, own]
            y[dropped.unsqueeze(1), own.nonzero()[:, 0]] = _some(
                g, level, rel[:, own].contiguous(), table[:, own], bias[own], dropped
            )
        out[kept] += y[kept] @ tail.t()
        out[dropped] += y[dropped][:, own] @ tail[:, own].t()
        x, before = y, own
    return out.relu_()


def _some(g, level: Level, rel, table, bias, points: Tensor) -> Tensor:
    """ReLU of the point convolution at some points only."""
    near, cells = level.neighbours[points], level.cells[points]
    out = table[cells[:, 0].long()] * (g[points] - level.xyz[points] @ rel) + bias
    for k in range(1, near.shape[1]):
        out.addcmul_(table[cells[:, k].long()], g[near[:, k].long()] - g[points])
    return out.relu_()


def _fake_block(
    rows, xyz, neighbours, cells, mask, dense, weights, tables, biases, tail, tail_bias, kept_bias, shortcut, gated
):
    return rows.new_empty(rows.shape[0], tail.shape[0])


def _block_flops(
    rows, xyz, neighbours, cells, mask, dense, weights, tables, biases, tail, tail_bias, kept_bias, shortcut, gated,
    *, out_val=None,
) -> int:  # fmt: skip
    count, k = neighbours.shape
    known = mask.device.type != "meta" and not isinstance(mask, torch._subclasses.FakeTensor)
    kept = int(mask.sum()) if known else count
    total = count * shortcut.numel() if shortcut is not None else 0
    before = None
    for weight, own in zip(weights, dense, strict=True):
        wide = len(weight)
        mine = int(own.sum()) if known else wide
        ins = weight.shape[1] - 3 if before is None else before
        total += count * (ins + 3) * wide + kept * (weight.shape[1] - 3 - ins) * wide
        total += k * (kept * wide + (count - kept) * mine)
        total += wide * (kept * wide + (count - kept) * mine)
        before = mine
    return 2 * total


register("point_block", _run_block, fake=_fake_block, flops=_block_flops)


def _run_conv(
    rows: Tensor, weight: Tensor, table: Tensor, bias: Tensor, xyz: Tensor, neighbours: Tensor, cells: Tensor,
    relu: bool,
) -> Tensor:  # fmt: skip
    xyz = xyz.to(rows.dtype).contiguous()
    return dispatch.chosen_for(rows).point_conv(rows, weight, table, bias, xyz, neighbours, cells, relu)


def conv_by_torch(
    rows: Tensor, weight: Tensor, table: Tensor, bias: Tensor, xyz: Tensor, neighbours: Tensor, cells: Tensor,
    relu: bool,
) -> Tensor:  # fmt: skip
    """In plain PyTorch."""
    rel = weight[:, -3:].t().contiguous()
    g = torch.addmm(xyz @ rel, rows, weight[:, :-3].t())
    out = aggregate_rows(g, xyz, rel, table, neighbours, cells) + bias
    return F.relu(out) if relu else out


def _fake_conv(rows, weight, table, bias, xyz, neighbours, cells, relu):
    return rows.new_empty(rows.shape[0], weight.shape[0])


def _conv_flops(rows, weight, table, bias, xyz, neighbours, cells, relu, *, out_val=None) -> int:
    return 2 * (rows.shape[0] * weight.numel() + neighbours.numel() * weight.shape[0])


register("point_conv", _run_conv, fake=_fake_conv, flops=_conv_flops)


def _run_linear(
    rows: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, add_map: Tensor | None, relu: bool
) -> Tensor:
    return dispatch.chosen_for(rows).point_linear(rows, weight, bias, add, add_map, relu)


def linear_by_torch(
    rows: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, add_map: Tensor | None, relu: bool
) -> Tensor:
    """In plain PyTorch."""
    out = F.linear(rows, weight, bias)
    if add is not None:
        out += add if add_map is None else add.index_select(0, add_map)
    return out.relu_() if relu else out


def _fake_linear(rows, weight, bias, add, add_map, relu):
    return rows.new_empty(rows.shape[0], weight.shape[0])


def _linear_flops(rows, weight, bias, add, add_map, relu, *, out_val=None) -> int:
    return 2 * rows.shape[0] * weight.numel()


register("point_linear", _run_linear, fake=_fake_linear, flops=_linear_flops)


def row_linear(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    add_map: Tensor | None = None,
    relu: bool = True,
) -> Tensor:
    """rows (R, C_in) · weight (C_out, C_in) + bias + add, then ReLU, in one pass; in evaluation.

    add: (R, C_out), or any rows of which add_map (R,) int32 says which one is added.
    """
    return torch.ops.sparsemask.point_linear(rows, weight, bias, add, add_map, relu)
