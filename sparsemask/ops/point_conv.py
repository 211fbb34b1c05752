"""Point convolution: features of a point's neighbours, weighted by where they lie (Wang et al., TPAMI 2022).

g = W·[features; coordinates] is computed at the points, not at their K neighbours: a 1×1 convolution is linear, so that
differences of features and of coordinates may be taken afterwards. What is left is one pass over the neighbours,

    out_i = D[cell(i, 0)]·(g_i - W_rel·xyz_i) + sum over k > 0 of D[cell(i, k)]·(g_{j_k} - g_i),

by the native kernels where they serve, else in plain PyTorch. All of it works on rows, one a point.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.ops import dispatch
from sparsemask.ops.registration import register

SIZE = 5  # cells of the kernel's cube along an axis


def cells(xyz: Tensor, neighbours: Tensor, radius: float, rule: str = "trunc", size: int = SIZE) -> Tensor:
    """The cell of a cube of size³, axes z, y, x, that each neighbour lies in.

    Args:
        xyz: (R, 3), metres.
        neighbours: (R, K) int32, rows of xyz.
        radius: half the cube's edge; what lies beyond counts to the outermost cells.
        rule: "trunc" (towards zero: shares 0.1, 0.2, 0.4, 0.2, 0.1 of the edge) or "round" (equal shares).

    Returns:
        (R, K) uint8.
    """
    return torch.ops.sparsemask.point_cells(xyz, neighbours, radius, rule, size)


def cells_by_torch(xyz: Tensor, neighbours: Tensor, radius: float, rule: str = "trunc", size: int = SIZE) -> Tensor:
    """The same in plain PyTorch."""
    rel = xyz[neighbours.long()] - xyz[:, None]
    u = size / 2 * (rel / radius).clamp(-0.99999, 0.99999)
    x, y, z = ((u.round() if rule == "round" else u.trunc()).long() + size // 2).unbind(-1)
    return ((z * size + y) * size + x).to(torch.uint8)


def _run_cells(xyz: Tensor, neighbours: Tensor, radius: float, rule: str, size: int) -> Tensor:
    return dispatch.chosen_for(xyz).point_cells(xyz, neighbours, radius, rule, size)


def _fake_cells(xyz, neighbours, radius, rule, size):
    return neighbours.new_empty(neighbours.shape, dtype=torch.uint8)


def point_means(rows: Tensor, neighbours: Tensor) -> Tensor:
    """The mean of rows (R, C) over each line of neighbours (n, K) int32: (n, C); without gradients."""
    return dispatch.chosen_for(rows).point_means(rows, neighbours)


def means_by_torch(rows: Tensor, neighbours: Tensor) -> Tensor:
    """The same in plain PyTorch."""
    return F.embedding_bag(neighbours, rows, mode="mean")


def _fake_means(rows, neighbours):
    return rows.new_empty(neighbours.shape[0], rows.shape[1])


def _no_flops(*_, out_val=None, **__) -> int:
    return 0  # no product of weights


register("point_cells", _run_cells, fake=_fake_cells, flops=_no_flops)
register("point_means", point_means, fake=_fake_means, flops=_no_flops)


@dataclass
class Level:
    """The points of one level of a batch as rows: coordinates, neighbours' rows, and the kernel's cells."""

    xyz: Tensor
    """(R, 3) relative to the middle of their cloud, so that differences of products lose little."""
    neighbours: Tensor
    """(R, K) int32."""
    cells: Tensor
    """(R, K) uint8."""
    readers: tuple | None = field(default=None, repr=False)
    """Who reads a point as a neighbour, of a form that the backend's gradients know; made by them once."""


def point_conv(features: Tensor, weight: Tensor, table: Tensor, level: Level) -> Tensor:
    """The point convolution of features, without bias.

    Args:
        features: (R, C_in), one row a point.
        weight: (C_out, C_in + 3), coordinates last.
        table: (size³, C_out), the depth-wise spatial kernel.
        level: where the points are.

    Returns:
        (R, C_out); differentiable in features, weight and table.
    """
    with torch.autocast(features.device.type, enabled=False):
        weight, table = weight.to(features.dtype), table.to(features.dtype)
        g, rel = _products(features, weight, level.xyz.to(features.dtype))
        return _Aggregate.apply(g, rel, table.contiguous(), level)


def _products(features: Tensor, weight: Tensor, xyz: Tensor) -> tuple[Tensor, Tensor]:
    rel = weight[:, -3:].t().contiguous()
    return torch.addmm(features @ weight[:, :-3].t(), xyz, rel), rel


def mixed_point_conv(features: Tensor, weight: Tensor, table: Tensor, level: Level, batch: int) -> Tensor:
    """As :func:`point_conv`, with the public code's mistake about batches of B > 1, for weights trained with it.

    There sample b's channel c is weighted by channel q // B of the table, at the cells of sample q mod B, with
    q = b·C + c.
    """
    count = len(features) // batch
    xyz = level.xyz.to(features.dtype)
    g, rel = _products(features, weight, xyz)
    cells = level.cells.view(batch, count, -1).long()
    out = 0
    for k in range(cells.shape[2]):
        kernel = table[cells[:, :, k]].permute(2, 0, 1).reshape(batch, -1, count).transpose(1, 2).reshape(g.shape)
        out = out + kernel * (g[level.neighbours[:, k].long()] - g if k else g - xyz @ rel)
    return out


class _Aggregate(torch.autograd.Function):
    """The pass over the neighbours, and its gradients."""

    @staticmethod
    def forward(ctx, g: Tensor, rel: Tensor, table: Tensor, level: Level) -> Tensor:
        ctx.save_for_backward(g, rel, table)
        ctx.level, ctx.backend = level, dispatch.chosen_for(g)
        return torch.ops.sparsemask.point_aggregate(g, level.xyz.to(g.dtype), rel, table, level.neighbours, level.cells)

    @staticmethod
    def backward(ctx, grad: Tensor):
        g, rel, table = ctx.saved_tensors
        level, grad = ctx.level, grad.contiguous()
        xyz = level.xyz.to(g.dtype).contiguous()
        first = table[SIZE**3 // 2]  # the point itself lies in the middle cell
        to_rel = -(xyz.t() @ grad) * first
        to_g, to_table = ctx.backend.point_gradients(grad, g, xyz, rel, table, level)
        return to_g, to_rel, to_table, None


def _run_aggregate(g: Tensor, xyz: Tensor, rel: Tensor, table: Tensor, neighbours: Tensor, cells: Tensor) -> Tensor:
    return dispatch.chosen_for(g).point_aggregate(g, xyz, rel, table, neighbours, cells)


def aggregate_rows(g: Tensor, xyz: Tensor, rel: Tensor, table: Tensor, neighbours: Tensor, cells: Tensor) -> Tensor:
    """The pass in plain PyTorch, neighbour by neighbour so that nothing of (R, K, C) is ever held."""
    out = table[cells[:, 0].long()] * (g - xyz @ rel)
    for k in range(1, neighbours.shape[1]):
        out.addcmul_(table[cells[:, k].long()], g[neighbours[:, k].long()] - g)
    return out


def _fake_aggregate(g, xyz, rel, table, neighbours, cells):
    return torch.empty_like(g)


def _aggregate_flops(g, xyz, rel, table, neighbours, cells, *, out_val=None) -> int:
    return 2 * neighbours.numel() * g.shape[1]


register("point_aggregate", _run_aggregate, fake=_fake_aggregate, flops=_aggregate_flops)


def gradients(grad: Tensor, g: Tensor, xyz: Tensor, rel: Tensor, table: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """Gradients to g and table of the pass, in plain PyTorch."""
    neighbours, cells = level.neighbours, level.cells
    to_g, to_table = torch.zeros_like(g), torch.zeros_like(table)
    for k in range(neighbours.shape[1]):
        cell, near = cells[:, k].long(), neighbours[:, k].long()
        mine = grad * table[cell]
        if k:
            to_g.index_add_(0, near, mine).sub_(mine)
        else:
            to_g += mine
        read = g[near] - g if k else g - xyz @ rel
        to_table.index_add_(0, cell, grad * read)
    return to_g, to_table
