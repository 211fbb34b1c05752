"""A sparse block of point convolutions by the native kernels.

A layer's products lie in one buffer: a row for every point, what dense inputs give, and behind them a row for every
kept point with what sparse inputs give added; kept outputs read kept neighbours there. Dense channels of the outputs
lie in a buffer of all points, sparse ones in a compact buffer of kept points, as in
:mod:`sparsemask.backends.native.block`.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.backends.native import library, points
from sparsemask.backends.native.library import Segment, Target
from sparsemask.backends.native.workspace import Workspace
from sparsemask.ops.weight_cache import Derived

_derived = Derived()
FEWEST = 8  # columns: fewer are not computed faster


class _Layer(NamedTuple):
    """Packed weights of a layer; outputs are ordered dense ones first."""

    dense: int  # dense outputs
    from_dense: Tensor
    from_sparse: Tensor | None
    rel: Tensor
    table: Tensor
    bias: Tensor


class _Parts(NamedTuple):
    layers: list[_Layer]
    kept: Tensor  # the fusion at kept points: all layers' dense and sparse channels in turn, then the shortcut
    dropped: Tensor
    tail_bias: Tensor
    kept_bias: Tensor


def block(rows: Tensor, level, mask: Tensor, dense: Tensor, folded, gated: bool) -> Tensor:
    """See :func:`sparsemask.ops.point_block.sparse_block`; float32 on the CPU."""
    f = folded
    sources = [*f.weights, *f.tables, *f.biases, f.tail, f.tail_bias, f.kept_bias, dense]
    sources += [] if f.shortcut is None else [f.shortcut]
    parts = _derived.get(sources, lambda: _split(f, dense), f.shortcut is None)
    rows, xyz = rows.contiguous(), level.xyz.contiguous()
    count, wide = len(rows), dense.shape[1]
    kept, dropped, compact = library.split(mask.contiguous())
    every = _every(count)
    # Where the products of a kept output's neighbours lie.
    behind = torch.where(compact >= 0, compact + count, every) if len(kept) else every
    out = library.empty(count, wide)
    with Workspace() as space:
        held: list[tuple[Tensor, Tensor]] = []  # of each layer, dense channels of all points, sparse ones of the kept
        x, sparse = rows, None
        for layer in parts.layers:
            x, sparse = _layer(space, layer, x, sparse, xyz, level, kept, dropped, compact, every, behind, gated)
            held.append((x, sparse))
        ends = [] if f.shortcut is None else [Segment(rows, None, 0, rows.shape[1])]
        all_dense = [Segment(d, None, 0, d.shape[1]) for d, _ in held if d.shape[1]]
        both = [
            one
            for d, s in held
            for one in (Segment(d, None, 0, d.shape[1]), Segment(s, compact, 0, s.shape[1]))
            if one.length
        ]
        add = rows if f.shortcut is None else None
        for listed, segments, packed, bias in (
            (kept, both, parts.kept, parts.kept_bias), (dropped, all_dense, parts.dropped, parts.tail_bias)
        ):  # fmt: skip
            library.product(
                listed, segments + ends, packed, wide, Target(out, listed), bias=bias, activation=(1, 0.0), add=add
            )
    return out


def conv(
    rows: Tensor, weight: Tensor, table: Tensor, bias: Tensor, xyz: Tensor, neighbours: Tensor, cells: Tensor,
    relu: bool,
) -> Tensor:  # fmt: skip
    """One point convolution at all points, (R, C_out)."""
    wide = len(weight)
    layer = _derived.get([weight, table, bias], lambda: _whole(weight, table, bias))
    padded = len(layer.bias)
    rows, every = rows.contiguous(), _every(len(rows))
    out = library.empty(len(rows), padded)
    with Workspace() as space:
        g = space.take(len(rows), padded)
        segments = [Segment(rows, None, 0, rows.shape[1]), Segment(xyz, None, 0, 3)]
        library.product(every, segments, layer.from_dense, padded, Target(g))
        points.aggregate(g, xyz, layer.rel, layer.table, neighbours, cells, out, bias=layer.bias, relu=relu)
    return out if padded == wide else out[:, :wide].clone()  # an operator's result is no view


def linear(
    rows: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, add_map: Tensor | None, relu: bool
) -> Tensor:
    """See :func:`sparsemask.ops.point_block.row_linear`."""
    packed = _derived.get([weight], lambda: library.pack(weight.t()), "linear")
    rows, every = rows.contiguous(), _every(len(rows))
    out = library.empty(len(rows), len(weight))
    library.product(
        every, [Segment(rows, None, 0, rows.shape[1])], packed, len(weight), Target(out), bias=bias,
        activation=(1 if relu else 0, 0.0), add=add, add_map=add_map,
    )  # fmt: skip
    return out


@lru_cache(maxsize=64)
def _every(count: int) -> Tensor:
    """All rows, int32 (count,); read only."""
    with torch.inference_mode(False):  # other calls of other modes read it
        return torch.arange(count, dtype=torch.int32)


def _whole(weight: Tensor, table: Tensor, bias: Tensor) -> _Layer:
    """All outputs, no fewer than fill a vector."""
    more = max(0, FEWEST - len(weight))
    weight, table, bias = F.pad(weight, (0, 0, 0, more)), F.pad(table, (0, more)), F.pad(bias, (0, more))
    rel = weight[:, -3:].t().contiguous()
    return _Layer(len(bias), library.pack(weight.t().contiguous()), None, rel, table.contiguous(), bias.clone())


def _layer(space, layer: _Layer, x, sparse, xyz, level, kept, dropped, compact, every, behind, gated):
    """(dense channels (R, n), sparse channels (kept, m)) of a layer's output from those of the one before."""
    wide, count = len(layer.bias), len(xyz)
    mixes = layer.from_sparse is not None and len(kept) > 0
    g = space.take(count + (len(kept) if mixes else 0), wide)
    # Columns of sparse outputs are only read by kept outputs; without these there is nothing to compute for them.
    segments = [Segment(x, None, 0, x.shape[1])] if x.shape[1] else []
    library.product(every, [*segments, Segment(xyz, None, 0, 3)], layer.from_dense, wide, Target(g[:count]))
    if mixes:
        more = g[count:]
        torch.index_select(g[:count], 0, kept, out=more)
        library.product(
            kept, [Segment(sparse, compact, 0, sparse.shape[1])], layer.from_sparse, wide, Target(more), add=more
        )
    dense_out = space.take(count, layer.dense)
    sparse_out = space.take(len(kept), wide - layer.dense)
    common = dict(bias=layer.bias, relu=True)
    read = (g, xyz, layer.rel, layer.table, level.neighbours, level.cells)
    map = behind if mixes else None
    if len(kept):
        points.aggregate(*read, dense_out, points=kept, map=map, rest=sparse_out, **common)
    if len(dropped) and layer.dense:
        columns = min(wide, max(layer.dense, FEWEST))
        points.aggregate(*read, dense_out, columns=columns, points=dropped, map=None if gated else map, **common)
    return dense_out, sparse_out


def _split(f, dense: Tensor) -> _Parts:
    layers, fused, fused_dense = [], [], []
    ins_dense = torch.arange(f.weights[0].shape[1] - 3)
    ins_sparse = ins_dense[:0]
    wide = dense.shape[1]
    for number, (weight, table, bias) in enumerate(zip(f.weights, f.tables, f.biases, strict=True)):
        outs_dense, outs_sparse = dense[number].nonzero()[:, 0], (~dense[number]).nonzero()[:, 0]
        order = torch.cat([outs_dense, outs_sparse])
        mine = weight[order]
        features, rel = mine[:, :-3], mine[:, -3:].t()
        from_dense = library.pack(torch.cat([features[:, ins_dense].t(), rel]))
        from_sparse = library.pack(features[:, ins_sparse].t()) if len(ins_sparse) else None
        layers.append(
            _Layer(
                len(outs_dense), from_dense, from_sparse, rel.contiguous(),
                table[:, order].contiguous(), bias[order].contiguous(),
            )
        )  # fmt: skip
        tail = f.tail[:, number * wide : (number + 1) * wide].t()
        fused.append(tail[order])
        fused_dense.append(tail[outs_dense])
        ins_dense, ins_sparse = outs_dense, outs_sparse
    ends = [] if f.shortcut is None else [f.shortcut.t()]
    return _Parts(
        layers,
        library.pack(torch.cat([*fused, *ends])),
        library.pack(torch.cat([*fused_dense, *ends])),
        f.tail_bias.clone(),
        f.kept_bias.clone(),
    )
