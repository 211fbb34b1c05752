"""A whole sparse mask module in pure PyTorch, in rows.

Each layer's features stand in two places: all channels of the kept locations in a compact list of rows, and the dense
channels of all locations in a narrow map. The compact list ends with the dropped locations that some kept one reads
(their dense channels, zeros in the sparse ones) and a row of zeros for what lies outside, so that the next layer
gathers from it alone. Channels are ordered dense first. Nothing has the size of the module's input but the narrow maps
and the result; the fusion's share of a layer is added up while its rows are in the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsemask.backends.gather.products import Product, by_taps, pieces
from sparsemask.backends.gather.reads import Reads, reads, taps_of_classes
from sparsemask.backends.reference import BACKEND as REFERENCE
from sparsemask.ops import activation as act
from sparsemask.ops.block import BlockCall
from sparsemask.ops.dense_part import dense_conv
from sparsemask.ops.geometry import Geometry
from sparsemask.ops.layout import from_rows, last_weight, to_rows
from sparsemask.ops.weight_cache import Derived

_STRIP = 4096  # rows of the result that stay in the cache while the layers' shares are added up
_derived = Derived()


def block(call: BlockCall) -> Tensor:
    """A module's layers and their fusion."""
    x, mask, dense, collect_weight, collect_bias = call.x, call.mask, call.dense, call.collect_weight, call.collect_bias
    kept = mask.reshape(-1).nonzero().squeeze(1)
    if len(kept) == mask.numel() or bool(dense.all()):
        return REFERENCE.block(call)
    sources = [*call.weights, dense, collect_weight] + ([collect_bias] if collect_bias is not None else [])
    plan = _derived.get(sources, lambda: Plan(call.weights, dense, collect_weight, collect_bias))
    rows = to_rows(x)
    places = _Places(kept, rows, x, plan)
    maps, total = _layers(rows, x, places, plan, call.activation)
    out = _dropped(maps, plan, rows)
    out.index_copy_(0, kept, total)
    return from_rows(out, x.shape[0], x.shape[2:])


class Plan:
    """A block's weights, channels dense first."""

    def __init__(self, weights, dense, collect_weight, collect_bias):
        dims, channels = weights[0].ndim - 2, dense.shape[1]
        self.channels, self.bias = channels, collect_bias.clone() if collect_bias is not None else None
        self.layers, self.collect = [], []
        fuse = collect_weight.flatten(1).T  # (L·C, C)
        before, ins = torch.arange(weights[0].shape[1], device=dense.device), weights[0].shape[1]
        for number, (weight, mine) in enumerate(zip(weights, dense, strict=True)):
            outs, order = int(mine.sum()), torch.argsort(~mine, stable=True)
            ordered = weight.index_select(1, before).index_select(0, order)
            self.layers.append(_Layer(ordered, Geometry.of(dims, tuple(weight.shape[2:])), ins, outs))
            self.collect.append(fuse.index_select(0, number * channels + order))
            before, ins = order, outs
        self.reach = [one.geometry for one in self.layers if not one.geometry.pointwise]


class _Layer:
    def __init__(self, weight: Tensor, geometry: Geometry, ins: int, outs: int):
        self.geometry, self.ins, self.outs = geometry, ins, outs
        self.taps = taps_of_classes(geometry)[0]
        self.full = Product(by_taps(weight, geometry), None, 1, [self.taps])
        self.narrow = last_weight(weight[:outs, :ins]) if outs and ins else None

    def everywhere(self, features: Tensor, like: Tensor, activation: str) -> Tensor:
        """Dense channels from dense channels at all locations: rows (R, outs) of features (N, ins, *spatial)."""
        if self.narrow is None:
            return like.new_zeros(len(like), self.outs)
        return to_rows(act.apply_(activation, dense_conv(features, self.narrow, None, self.geometry)))


class _Places:
    """Kept rows, and what they read: of the input, and of the compact lists of the layers."""

    def __init__(self, kept: Tensor, rows: Tensor, x: Tensor, plan: Plan):
        self.kept, self.count = kept, len(kept)
        self.halo = kept[:0]
        self._reads: dict[Geometry, Reads] = {}
        self._spatial, self._samples = x.shape[2:], x.shape[0]
        near = any(one.outs for one in plan.layers[:-1])
        if near:
            marks = torch.zeros(len(rows), dtype=torch.bool, device=x.device)
            for one in {layer.geometry for layer in plan.layers[1:] if not layer.geometry.pointwise}:
                marks.index_fill_(0, self.of_input(one).rows.view(-1).long(), True)
            marks.index_fill_(0, kept, False)
            self.halo = marks.nonzero().squeeze(1)
        self.zero = self.count + len(self.halo)
        self._where = None
        self._rows = len(rows)
        self._inner: dict[Geometry, Reads] = {}

    def of_input(self, geometry: Geometry) -> Reads:
        """What kept locations read of the module's input."""
        if geometry not in self._reads:
            (self._reads[geometry],) = reads(self.kept, self._samples, self._spatial, geometry)
        return self._reads[geometry]

    def of_layer(self, geometry: Geometry) -> Reads:
        """What kept locations read of a layer's compact list."""
        if geometry not in self._inner:
            outer = self.of_input(geometry)
            rows = self._positions().index_select(0, outer.rows.view(-1))
            rows.index_fill_(0, outer.outside, self.zero)
            self._inner[geometry] = Reads(None, outer.taps, rows.view(outer.rows.shape), outer.outside[:0])
        return self._inner[geometry]

    def _positions(self) -> Tensor:
        if self._where is None:
            kind = torch.int32 if self.zero < 1 << 31 else torch.int64
            each = torch.arange(self.zero, dtype=kind, device=self.kept.device)
            where = torch.full((self._rows,), self.zero, dtype=kind, device=self.kept.device)
            where.index_copy_(0, self.kept, each[: self.count])
            self._where = where.index_copy_(0, self.halo, each[self.count :])
        return self._where


def _layers(rows: Tensor, x: Tensor, places: _Places, plan: Plan, activation: str) -> tuple[list[Tensor], Tensor]:
    """The layers' narrow maps, and the fusion's output (K, C) at the kept locations."""
    count, channels = places.count, plan.channels
    columns = plan.collect[0].shape[1]
    total = rows.new_zeros(count, columns) if plan.bias is None else plan.bias.repeat(count, 1)
    lists = [rows.new_empty(places.zero + 1, channels) for _ in plan.layers[:2]]
    for one in lists:
        one[count:].zero_()
    maps, before, features, used = [], rows, x, [0, 0]
    for number, layer in enumerate(plan.layers):
        after = lists[number % 2]
        if layer.geometry.pointwise and number:
            parts = _in_place(before, count)
        else:
            parts = pieces(before, (places.of_layer if number else places.of_input)(layer.geometry))
        for begin, end, gathered in parts:
            part = layer.full.into(after[begin:end], gathered, layer.taps, activation)
            total[begin:end].addmm_(part, plan.collect[number])
        narrow = layer.everywhere(features, rows, activation)
        if layer.outs:
            narrow.index_copy_(0, places.kept, after[:count, : layer.outs])
        if len(places.halo) and number + 1 < len(plan.layers):
            halo = after[count : places.zero]
            halo[:, layer.outs : used[number % 2]].zero_()
            halo[:, : layer.outs].copy_(narrow.index_select(0, places.halo))
            used[number % 2] = layer.outs
        maps.append(narrow)
        features, before = from_rows(narrow, x.shape[0], x.shape[2:]), after
    return maps, total


def _in_place(rows: Tensor, count: int, step: int = 4096):
    """Rows that are read where they are, as :func:`pieces` would give them."""
    for begin in range(0, count, step):
        end = min(begin + step, count)
        yield begin, end, rows[begin:end].unsqueeze(1)


def _dropped(maps: Sequence[Tensor], plan: Plan, like: Tensor) -> Tensor:
    """The fusion of the layers' dense channels at all locations: rows (R, C)."""
    columns = plan.collect[0].shape[1]
    shares = [(one, fuse[: one.shape[1]]) for one, fuse in zip(maps, plan.collect, strict=True) if one.shape[1]]
    bias = like.new_zeros(columns) if plan.bias is None else plan.bias
    out = like.new_empty(len(like), columns)
    if not shares:
        return out.copy_(bias)
    for begin in range(0, len(out), _STRIP):
        strip = out[begin : begin + _STRIP]
        torch.addmm(bias, shares[0][0][begin : begin + _STRIP], shares[0][1], out=strip)
        for rows, fuse in shares[1:]:
            strip.addmm_(rows[begin : begin + _STRIP], fuse)
    return out
