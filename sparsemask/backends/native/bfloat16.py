"""Convolutions and modules in bfloat16 and in int8: all channels of a location in one row, dense ones first.

A location's row is as long as the layer has channels, and where it is dropped its sparse channels are zeros. So a kept
location reads one row a tap wherever its neighbours lie, rows of neighbours follow each other in memory, and tiles are
read from there (src/tiles.h); dot products (src/dots.h) read any rows. That moves more memory than the rows of
:mod:`sparsemask.backends.native.block`, half as many bytes a number, and computes some products with zeros, which tiles
do for less than it would cost to avoid them. Sums are in float32; what is between the layers is rounded to bfloat16, as
`torch.autocast` rounds it.

In int8 a layer's input is quantised by its own range, and its weights by that of every output; what it gives, and the
input that a module adds, is in bfloat16. Within a module features stay in int8 from layer to layer. How large they are
must be known before they are written: a part of each layer's outputs is computed before all of them. Nothing is
calibrated, and nothing kept: the same input gives the same bits. Sums are exact, so that emulated ones are, too.
The fusion's weights know the scales of the layers that it reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsemask.backends.native import library, tiles
from sparsemask.backends.native.block import by_sample
from sparsemask.backends.native.conv import RELU, activation_code, leading
from sparsemask.backends.native.grid import Grid, grid
from sparsemask.backends.native.rows import from_rows, to_rows
from sparsemask.backends.native.tiles import Packed, Quantum, Segment, up_to
from sparsemask.backends.native.workspace import Workspace
from sparsemask.ops import activation
from sparsemask.ops.block import BlockCall
from sparsemask.ops.block_with_channel_attention import AttendedBlockCall, factors
from sparsemask.ops.concat_conv import ConcatConvCall
from sparsemask.ops.conv import ConvCall, same_size
from sparsemask.ops.dense_part import dense_conv
from sparsemask.ops.weight_cache import Derived

_derived = Derived()
_Attention = Callable[[Tensor], Tensor]


class _Rows(NamedTuple):
    """Features of all locations; quantum: of rows in int8."""

    rows: Tensor
    quantum: Quantum | None = None


def read_rows(rows: Tensor, kind: torch.dtype, space: Workspace | None = None) -> _Rows:
    """Rows in bfloat16 as products of a kind read them."""
    if kind == tiles.BFLOAT16:
        return _Rows(rows)
    quantum = Quantum.of(*tiles.range_of(rows))
    return _Rows(tiles.in_int8(rows, quantum, space), quantum)


def conv(call: ConvCall, kind: torch.dtype = tiles.BFLOAT16) -> Tensor:
    """One sparse mask convolution without groups: kept rows in full, dropped rows from dense to dense channels.

    Args:
        call: in bfloat16.
        kind: of the products, tiles.BFLOAT16 or tiles.INT8.
    """
    tables = grid(len(call.x), tuple(call.x.shape[2:]), call.geometry)
    rows, act = read_rows(tiles.rows_of(call.x), kind), activation_code(call.activation)
    kept, dropped, _ = library.split(call.mask.contiguous(), compact=False)
    plan = _planned(call, tables, kind)
    out = tiles.empty(len(tables.position), len(call.out_dense))
    plan.full.run(rows, tables, kept, out, act)
    plan.drop(rows, tables, dropped, out, act)
    return from_rows(out, len(call.x), call.geometry.output_size(call.x.shape[2:]), call.x)


def whole_conv(call: ConvCall) -> Tensor:
    """The same, all rows by torch's convolution, dropped ones computed again."""
    whole = activation.apply_(call.activation, dense_conv(call.x, call.weight, call.bias, call.geometry))
    _, dropped, _ = library.split(call.mask.contiguous(), compact=False)
    if not len(dropped) or bool(call.in_dense.all() & call.out_dense.all()):
        return whole
    tables = grid(len(call.x), tuple(call.x.shape[2:]), call.geometry)
    out, rows, act = to_rows(whole), _Rows(tiles.rows_of(call.x)), activation_code(call.activation)
    _planned(call, tables, tiles.BFLOAT16).drop(rows, tables, dropped, out, act)
    return from_rows(out, len(call.x), call.geometry.output_size(call.x.shape[2:]), call.x)


def _planned(call: ConvCall, tables: Grid, kind: torch.dtype) -> _Conv:
    """The layer's packed weights. Of the size matters only which classes of outputs there are."""
    sources = [call.weight, call.in_dense, call.out_dense] + ([call.bias] if call.bias is not None else [])
    form = tuple(one.taps for one in tables.classes)
    return _derived.get(sources, lambda: _Conv(call, tables, kind), (call.geometry, form, kind))


class _Conv:
    """The packed weights of a layer: everything to everything, and dense to dense."""

    def __init__(self, call: ConvCall, tables: Grid, kind: torch.dtype):
        taps = call.weight.detach().float().flatten(2)
        taps = taps.permute(2, 0, 1) if call.geometry.transposed else taps.permute(2, 1, 0)  # (taps, C_in, C_out)
        bias = call.bias.detach().float() if call.bias is not None else None
        self.full, self.dense, self.places = Product(taps, bias, tables, kind), None, None
        if bool(call.out_dense.any()):
            if not leading(call.out_dense):
                self.places = call.out_dense.nonzero().flatten().to(torch.int32)
            # Sparse channels among the dense ones are read, times zero.
            last = int(call.in_dense.nonzero().max()) + 1 if bool(call.in_dense.any()) else 0
            dense = (taps * call.in_dense[:, None])[:, :last, call.out_dense]
            self.dense = Product(dense, bias[call.out_dense] if bias is not None else None, tables, kind)

    def drop(self, rows: _Rows, tables: Grid, dropped: Tensor, out: Tensor, act: tuple[int, float]) -> None:
        """Set the dropped rows of `out`: dense channels of dense ones, zeros elsewhere."""
        if self.dense is None:
            tiles.product(dropped, [], None, 0, out, dropped)
        else:
            self.dense.run(rows, tables, dropped, out, act, self.places)


class Product:
    """Packed weights (taps, C_in, C_out) for every class of outputs."""

    def __init__(self, taps: Tensor, bias: Tensor | None, tables: Grid, kind: torch.dtype):
        self.channels, self.columns = taps.shape[1], taps.shape[2]
        self.packed = [tiles.pack(taps[[index for index, _ in one.taps]], kind) for one in tables.classes]
        self.bias = tiles.padded(bias)

    def run(
        self, rows: _Rows, tables: Grid, listed: Tensor, out: Tensor, act: tuple[int, float],
        places: Tensor | None = None, side_by_side: bool = False,
    ) -> None:  # fmt: skip
        """Compute the outputs `listed` (n,) int32 of rows (R, C_in) into their rows of `out`, at `places` there.

        side_by_side: outputs of one class go to the first n rows of `out` instead.
        """
        parts = [(listed, library.lookup(listed, tables.position))]
        if tables.kind is not None:
            parts = library.partition(listed, tables.kind, len(tables.classes), tables.position)
        for one, packed, (mine, pos) in zip(tables.classes, self.packed, parts, strict=True):
            segments = [Segment(rows.rows, tables.interior, offset, self.channels) for _, offset in one.taps]
            tiles.product(
                pos, segments, packed, self.columns, out, None if side_by_side else mine, bias=self.bias,
                activation=act, places=places, read=rows.quantum,
            )  # fmt: skip


def joined_conv(call: ConcatConvCall) -> Tensor:
    """See :mod:`sparsemask.ops.concat_conv`."""
    xs, weight = call.xs, call.weight
    tables = grid(len(xs[0]), tuple(xs[0].shape[2:]), same_size(weight))
    sizes = [x.shape[1] for x in xs]
    rows = [tiles.rows_of(x) for x in xs]

    def make() -> tuple[Packed, Tensor | None]:
        taps = weight.detach().float().flatten(2).permute(2, 1, 0)  # (taps, all C_in, C_out)
        return _joined(taps, sizes), tiles.padded(call.bias)

    sources = [weight] + ([call.bias] if call.bias is not None else [])
    packed, bias = _derived.get(sources, make, ("joined", *sizes))
    read = list(zip(rows, sizes, strict=True))
    segments = [Segment(r, tables.interior, o, size) for _, o in tables.classes[0].taps for r, size in read]
    columns, add = len(weight), to_rows(call.add) if call.add is not None else None
    out, act = tiles.empty(len(rows[0]), columns), activation_code(call.activation)
    tiles.product(tables.position, segments, packed, columns, out, bias=bias, activation=act, add=add)
    return from_rows(out, len(xs[0]), tuple(xs[0].shape[2:]), xs[0])


def _joined(taps: Tensor, sizes: Sequence[int], kind: torch.dtype = tiles.BFLOAT16) -> Packed:
    """Packed weights of several features' channels (taps, their sum, columns), each filled up by itself."""
    whole = taps.new_zeros(len(taps), sum(up_to(size, kind) for size in sizes), taps.shape[2])
    start = at = 0
    for size in sizes:
        whole[:, at : at + size] = taps[:, start : start + size]
        start, at = start + size, at + up_to(size, kind)
    return tiles.pack(whole, kind)


def block(call: BlockCall, kind: torch.dtype = tiles.BFLOAT16) -> Tensor:
    """A module's layers and their fusion.

    Args:
        call: in bfloat16.
        kind: of the products, tiles.BFLOAT16 or tiles.INT8.
    """
    if kind == tiles.INT8:  # a sample's numbers depend on no other
        return by_sample(call, lambda sample: _block(sample, None, kind))
    return _block(call, None, kind)


def attended_block(call: AttendedBlockCall, kind: torch.dtype = tiles.BFLOAT16) -> Tensor:
    """A module with its channel attention, and its input added; see :func:`block`."""
    attention = tuple(one.float() for one in call.attention)
    attend = lambda mean: factors(mean, attention)
    return by_sample(call.block, lambda sample: _block(sample, attend, kind))


def _block(call: BlockCall, attention: _Attention | None, kind: torch.dtype) -> Tensor:
    """attention: from the mean (1, C) of the fusion's output to factors (1, C); see
    :mod:`sparsemask.backends.native.block`."""
    x, weights, dense, act = call.x, call.weights, call.dense, activation_code(call.activation)
    collect_weight, collect_bias = call.collect_weight, call.collect_bias
    sources = [*weights, dense, collect_weight] + ([collect_bias] if collect_bias is not None else [])
    plan = _derived.get(sources, lambda: _Block(weights, dense, collect_weight, collect_bias, kind), ("block", kind))
    spatial, wide = tuple(x.shape[2:]), up_to(dense.shape[1], kind)
    tables = grid(len(x), spatial, same_size(weights[0]))
    kept, dropped, _ = library.split(call.mask.contiguous(), compact=False)
    listed = [(rows, library.lookup(rows, tables.position)) for rows in (kept, dropped)]
    offsets = [offset for _, offset in tables.classes[0].taps]
    given = tiles.rows_of(x)
    result = tiles.empty(len(given), plan.columns)
    with Workspace() as space:
        before = read_rows(given, kind, space)
        layers, sums = [], []
        for layer in plan.layers:
            out = tiles.empty(len(given), wide, space, kind)
            parts = [
                (rows, pos, part, [Segment(before.rows, tables.interior, o, part.channels) for o in offsets])
                for (rows, pos), part in zip(listed, (layer.kept, layer.dropped), strict=True)
            ]
            quantum = _range(parts, before, act, space) if kind == tiles.INT8 else None
            sums.append(torch.zeros(torch.get_num_threads(), wide, dtype=torch.float64))
            for rows, pos, part, taps in parts:
                own = torch.zeros(torch.get_num_threads(), part.columns, dtype=torch.float64)
                tiles.product(
                    pos, taps if part.channels else [], part.packed, part.columns, out, rows, activation=act, sums=own,
                    read=before.quantum, written=quantum,
                )  # fmt: skip
                sums[-1][:, : part.columns] += own
            before = _Rows(out, quantum)
            layers.append(before)
        means = [one.sum(0) / len(given) for one in sums]
        fuse, bias = plan.fused(layers, means, attention)
        middle = offsets[len(offsets) // 2]
        # Of numbers in int8 the weights know the scales.
        read = Quantum(1.0, layers[0].quantum.zero) if layers[0].quantum is not None else None
        for (rows, pos), part, counts in zip(listed, fuse, plan.counts, strict=True):
            taps = [Segment(r.rows, tables.interior, middle, n) for r, n in zip(layers, counts, strict=True) if n]
            add = given if attention is not None else None
            tiles.product(pos, taps, part, plan.columns, result, rows, bias=bias, add=add, read=read)
    return from_rows(result, len(x), spatial, x)


_RUN, _EVERY, _FEW = 8, 17, 1024  # of more outputs than _FEW a run of every _EVERY-th is computed before, to know how
_MARGIN = 1.25  # large they are; times the largest of these is the largest that there will be


def _range(parts: Sequence[_Listed], before: _Rows, act: tuple[int, float], space: Workspace) -> Quantum:
    """The quantum of a layer's outputs."""
    ranges = [(0.0, 0.0)]
    for _, pos, part, taps in parts:
        if part.columns and len(pos):
            few = pos if len(pos) < _FEW else pos.unfold(0, _RUN, _RUN * _EVERY).reshape(-1)
            out = tiles.empty(len(few), up_to(part.columns), space)
            tiles.product(few, taps, part.packed, part.columns, out, activation=act, read=before.quantum)
            ranges.append(tiles.range_of(out))
    least, most = (_MARGIN * one(limits) for one, limits in zip((min, max), zip(*ranges, strict=True), strict=True))
    # The fusion reads several layers at once: what stands for 0 is the same in all.
    return Quantum.of(0.0, most) if act[0] == RELU else Quantum(max(-least, most) / 127 or 1.0, 128)


@dataclasses.dataclass(frozen=True)
class _Part:
    """A layer's products: of the first `channels` of every tap, to the first `columns` outputs."""

    channels: int
    columns: int
    packed: Packed | None


_Listed = tuple[Tensor, Tensor, _Part, Sequence[Segment]]  # rows, where they stand, and what is computed of what there


@dataclasses.dataclass(frozen=True)
class _LayerWeights:
    """A layer at kept and at dropped locations."""

    kept: _Part
    dropped: _Part


class _Block:
    """The packed weights of a block, channels dense first."""

    def __init__(
        self, weights: Sequence[Tensor], dense: Tensor, collect_weight: Tensor, collect_bias: Tensor | None,
        kind: torch.dtype,
    ):  # fmt: skip
        self.kind, self.layers, orders, counts = kind, [], [], []
        order = torch.arange(weights[0].shape[1])
        n_in = len(order)  # the module's input is dense
        for weight, mine in zip(weights, dense, strict=True):
            outs = torch.cat([mine.nonzero().flatten(), (~mine).nonzero().flatten()])
            n_dense = int(mine.sum())
            taps = weight.detach().float().flatten(2).permute(2, 1, 0)[:, order][:, :, outs]
            kept = _Part(len(order), len(outs), tiles.pack(taps, kind))
            few = tiles.pack(taps[:, :n_in, :n_dense], kind) if n_in and n_dense else None
            reads = n_in if few is not None else 0
            self.layers.append(_LayerWeights(kept, _Part(reads, n_dense if few is not None else 0, few)))
            order, n_in = outs, n_dense
            orders.append(outs)
            counts.append(n_dense)
        fuse = collect_weight.detach().float().flatten(1).T.unflatten(0, (len(weights), -1))  # (L, C, columns)
        self.columns = fuse.shape[2]
        self._fuse = [part[outs] for part, outs in zip(fuse, orders, strict=True)]
        self.bias = tiles.padded(collect_bias)
        self.counts = ([fuse.shape[1]] * len(weights), counts)
        self._fusion = self._packed(self._fuse)

    def _packed(self, fuse: Sequence[Tensor]) -> tuple[Packed, Packed | None]:
        """Of the fusion at kept and at dropped locations."""
        parts = [part[:count] for part, count in zip(fuse, self.counts[1], strict=True) if count]
        few = _joined(torch.cat(parts)[None], [len(part) for part in parts], self.kind) if parts else None
        return _joined(torch.cat(list(fuse))[None], [len(part) for part in fuse], self.kind), few

    def fused(
        self, layers: Sequence[_Rows], means: Sequence[Tensor], attention: _Attention | None
    ) -> tuple[tuple[Packed, Packed | None], Tensor | None]:
        """The fusion's packed weights and bias: times what numbers in int8 stand for, and the factors of its own mean.

        Args:
            layers: what it reads.
            means: of every layer's channels over all locations, (C filled up,) float64.
            attention: see :func:`_block`.
        """
        fuse, bias = self._fuse, self.bias
        if attention is not None:
            mean = sum(one[: len(part)] @ part.double() for one, part in zip(means, fuse, strict=True))
            if bias is not None:
                mean = mean + bias[: self.columns]
            scale = attention(mean.float()[None])[0]
            bias = tiles.padded(bias[: self.columns] * scale) if bias is not None else None
            fuse = [part * scale for part in fuse]
        if self.kind == tiles.INT8:
            fuse = [part * one.quantum.scale for part, one in zip(fuse, layers, strict=True)]
        return (self._fusion if fuse is self._fuse else self._packed(fuse)), bias
