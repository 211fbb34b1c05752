"""A whole sparse mask module in rows: nothing is padded, zeroed or concatenated between its layers.

Every layer's dense channels lie in one buffer of all locations, its sparse channels in a compact one of the kept
locations alone; channels are ordered dense first. A kept location reads both at every tap (a dropped neighbour's sparse
channels are one shared row of zeros), a dropped location the dense buffer only. The 1×1 fusion reads all layers'
buffers where they are. (SMSR, Wang et al. 2021, section 3.2.)

Channel attention needs the mean of the fusion's output before it can scale it. The fusion is linear, so that the mean
is the fusion of the layers' means, which the layers sum up as they write: attention becomes a factor on the fusion's
weights and the module's input an addend in its epilogue, and the unscaled output is never written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from sparsemask.backends.native import library
from sparsemask.backends.native.conv import activation_code
from sparsemask.backends.native.grid import grid
from sparsemask.backends.native.library import Segment, Target
from sparsemask.backends.native.rows import from_rows, to_rows
from sparsemask.backends.native.workspace import Workspace
from sparsemask.ops.block import BlockCall
from sparsemask.ops.block_with_channel_attention import AttendedBlockCall, factors
from sparsemask.ops.conv import same_size
from sparsemask.ops.geometry import Geometry
from sparsemask.ops.weight_cache import Derived

_derived = Derived()


def block(call: BlockCall) -> Tensor:
    """A module's layers and their fusion."""
    return _block(call, None)


def attended_block(call: AttendedBlockCall) -> Tensor:
    """A module with its channel attention, and its input added."""
    attend = lambda mean: factors(mean, call.attention)
    return by_sample(call.block, lambda sample: _block(sample, attend))


def by_sample(call: BlockCall, run: Callable[[BlockCall], Tensor]) -> Tensor:
    """What `run` makes of every sample's call, together: attention has factors of each sample's own."""
    if len(call.x) == 1:
        return run(call)
    samples = zip(call.x.split(1), call.mask.split(1), strict=True)
    return torch.cat([run(dataclasses.replace(call, x=x, mask=mask)) for x, mask in samples])


def _block(call: BlockCall, attention: Callable[[Tensor], Tensor] | None) -> Tensor:
    """attention: from the mean (1, C) of the fusion's output to factors (1, C); with it the result is x + factors times
    the fusion (batch 1)."""
    x, mask, weights, dense, activation = call.x, call.mask, call.weights, call.dense, call.activation
    collect_weight, collect_bias = call.collect_weight, call.collect_bias
    batch, spatial = x.shape[0], tuple(x.shape[2:])
    sources = [*weights, dense, collect_weight] + ([collect_bias] if collect_bias is not None else [])
    plan = _derived.get(sources, lambda: _Plan(weights, dense, collect_weight, collect_bias))
    places = _Places(batch, spatial, same_size(weights[0]), mask)
    rows = to_rows(x)
    with Workspace() as space:
        layers = [_Layer(rows, None)]
        for one in plan.layers:
            layers.append(_run(layers[-1], one, places, activation_code(activation), space, attention is not None))
        result = library.empty(len(rows), plan.columns)
        collect, dropped, bias, add = plan.collect, plan.collect_dropped, plan.bias, None
        if attention is not None:
            collect, dropped, bias = plan.attended(attention, layers[1:], len(rows))
            add = rows
        middle = places.offsets[len(places.offsets) // 2]
        everywhere = [Segment(one.everywhere, places.grid, middle, one.n_dense) for one in layers[1:] if one.n_dense]
        here = [Segment(one.here, places.compact, middle, one.n_sparse) for one in layers[1:] if one.n_sparse]
        for at, listed, read, packed in (
            (places.at_kept, places.kept, everywhere + here, collect),
            (places.at_dropped, places.dropped, everywhere, dropped),
        ):
            library.product(at, read, packed, plan.columns, Target(result, listed), bias=bias, add=add)
    return from_rows(result, batch, spatial, x)


class _Places:
    """Kept and dropped rows of a mask, where they stand on the padded grid, and the way to the compact rows."""

    def __init__(self, batch: int, spatial: tuple[int, ...], geometry: Geometry, mask: Tensor):
        tables = grid(batch, spatial, geometry)
        self.grid = tables.interior
        self.offsets = [offset for _, offset in tables.classes[0].taps]
        self.kept, self.dropped, compact = library.split(mask.contiguous())
        self.compact = library.lookup(tables.interior, compact)
        self.at_kept = library.lookup(self.kept, tables.position)
        self.at_dropped = library.lookup(self.dropped, tables.position)


class _Layer:
    """A layer's output: dense channels at all locations, sparse ones at the kept, and the sums of both or None."""

    def __init__(self, everywhere: Tensor, here: Tensor | None, sums: Tensor | None = None):
        self.everywhere, self.here, self.sums = everywhere, here, sums
        self.n_dense = everywhere.shape[1]
        self.n_sparse = here.shape[1] if here is not None else 0


def _run(before: _Layer, weights: _Weights, places: _Places, act, space: Workspace, summed: bool) -> _Layer:
    """The next layer; buffers come from the workspace."""
    n_dense, n_sparse = weights.n_dense, weights.n_sparse
    everywhere = space.take(len(places.kept) + len(places.dropped) if n_dense else 0, n_dense)
    here = space.take(len(places.kept), n_sparse)
    sums = torch.zeros(torch.get_num_threads(), n_dense + n_sparse, dtype=torch.float64) if summed else None
    dense = [Segment(before.everywhere, places.grid, o, before.n_dense) for o in places.offsets if before.n_dense]
    sparse = [Segment(before.here, places.compact, o, before.n_sparse) for o in places.offsets if before.n_sparse]
    library.product(
        places.at_kept,
        _interleaved(dense, sparse),
        weights.full,
        n_dense + n_sparse,
        Target(everywhere, places.kept),
        Target(here),
        activation=act,
        sums=sums,
    )
    if n_dense:
        more = torch.zeros(torch.get_num_threads(), n_dense, dtype=torch.float64) if summed else None
        out = Target(everywhere, places.dropped)
        library.product(places.at_dropped, dense, weights.dropping, n_dense, out, activation=act, sums=more)
        if summed:
            sums[:, :n_dense] += more
    return _Layer(everywhere, here, sums)


def _interleaved(dense: list[Segment], sparse: list[Segment]) -> list[Segment]:
    """Tap by tap, dense channels first."""
    if not dense or not sparse:
        return dense or sparse
    return [one for pair in zip(dense, sparse, strict=True) for one in pair]


class _Weights:
    """Packed weights of one layer: everything to everything, and dense to dense."""

    def __init__(self, taps: Tensor, n_in: int, n_dense: int):
        self.n_dense, self.n_sparse = n_dense, taps.shape[2] - n_dense
        self.full = library.pack(taps.reshape(-1, taps.shape[2]))
        self.dropping = library.pack(taps[:, :n_in, :n_dense].reshape(-1, n_dense)) if n_dense else None


class _Plan:
    """The packed weights of a block, channels dense first."""

    def __init__(self, weights: list[Tensor], dense: Tensor, collect_weight: Tensor, collect_bias: Tensor | None):
        self.layers = []
        order, n_in, wide = torch.arange(weights[0].shape[1]), weights[0].shape[1], dense.shape[1]
        everywhere, here = [], []
        for number, (weight, mine) in enumerate(zip(weights, dense, strict=True)):
            outs = torch.cat([mine.nonzero().flatten(), (~mine).nonzero().flatten()])
            n_dense = int(mine.sum())
            taps = weight.detach().to(torch.float32).flatten(2).permute(2, 1, 0)[:, order][:, :, outs]
            self.layers.append(_Weights(taps, n_in, n_dense))
            order, n_in = outs, n_dense
            everywhere.append(number * wide + outs[:n_dense])
            here.append(number * wide + outs[n_dense:])
        fuse = collect_weight.detach().to(torch.float32).flatten(1).T  # (L·C, C)
        self.columns, self._everywhere = fuse.shape[1], sum(map(len, everywhere))
        self._order = torch.cat(everywhere + here)
        self._fuse = fuse[self._order]
        self.collect, self.collect_dropped = library.pack(self._fuse), library.pack(self._fuse[: self._everywhere])
        self.bias = collect_bias.detach().to(torch.float32).clone() if collect_bias is not None else None

    def attended(self, attention, layers: list[_Layer], locations: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """The fusion's packed weights and bias times the factors of its own mean."""
        sums = [one.sums.sum(0) for one in layers]
        means = torch.cat([s[: one.n_dense] for s, one in zip(sums, layers, strict=True)])
        means = torch.cat([means, *(s[one.n_dense :] for s, one in zip(sums, layers, strict=True))]) / locations
        mean = means @ self._fuse.double()
        if self.bias is not None:
            mean = mean + self.bias
        factors = attention(mean.to(torch.float32)[None])[0]
        scaled = self._fuse * factors
        bias = self.bias * factors if self.bias is not None else None
        return library.pack(scaled), library.pack(scaled[: self._everywhere]), bias
