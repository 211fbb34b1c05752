"""Which input rows the kept outputs of a convolution read.

An output stands at a place of the input grid and reads it at fixed offsets, except at the border, where taps fall
outside. The outputs of a transposed convolution fall into classes by the remainder of their coordinates at the division
by the stride; each class reads its own taps. Tables of a geometry are made once for a size and kept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from sparsemask.ops.geometry import Geometry


class Reads(NamedTuple):
    """What some outputs read."""

    at: Tensor | None
    """(n,) places in the list of outputs, ascending; None: all of it, in order."""
    taps: tuple[int, ...]
    """The kernel's taps that are read."""
    rows: Tensor
    """(n, T) input rows, int32 where that is enough; 0 where a tap falls outside."""
    outside: Tensor
    """Ascending places in `rows`, flattened, of taps that fall outside."""


class _Class(NamedTuple):
    taps: tuple[int, ...]
    steps: Tensor  # (T, dims) from the output's place to the tap's, in coordinates
    offsets: Tensor  # (T,) the same in rows
    border: Tensor  # bool (outputs of one sample,): some tap falls outside


class _Tables(NamedTuple):
    base: Tensor  # (outputs of one sample,) the place of an output, in rows; may be outside
    kind: Tensor | None  # (outputs of one sample,) number of its class, None if there is one
    classes: tuple[_Class, ...]
    coordinates: tuple[Tensor, ...]  # the same place as coordinates, axis by axis, for every output coordinate


def reads(listed: Tensor, samples: int, spatial: Sequence[int], geometry: Geometry) -> Iterator[Reads]:
    """What the outputs `listed` (n,) int64, numbered batch first, read of an input (samples, C, *spatial)."""
    spatial = tuple(spatial)
    tables = _tables(spatial, geometry, listed.device)
    outputs, size = len(tables.base), math.prod(spatial)
    sample, local = None, listed
    if samples > 1:
        sample = torch.div(listed, outputs, rounding_mode="floor")
        local = listed - sample * outputs
    start = tables.base.index_select(0, local)
    if samples * size + start.numel() >= 1 << 31:
        start = start.long()
    if sample is not None:
        start = start + (sample * size).to(start.dtype)
    kinds = tables.kind.index_select(0, local) if tables.kind is not None else None
    for number, one in enumerate(tables.classes):
        at = (kinds == number).nonzero().squeeze(1) if kinds is not None else None
        here, mine = (start, local) if at is None else (start.index_select(0, at), local.index_select(0, at))
        rows = here[:, None] + one.offsets.to(start.dtype)
        edge = one.border.index_select(0, mine).nonzero().squeeze(1)
        missing = _missing(tables, one, mine.index_select(0, edge), spatial, geometry)
        outside = edge.index_select(0, missing[0]) * len(one.taps) + missing[1]
        rows.view(-1).index_fill_(0, outside, 0)
        yield Reads(at, one.taps, rows, outside)


def taps_of_classes(g: Geometry) -> list[tuple[int, ...]]:
    """The kernel's taps that each class of outputs reads; one class but for transposed convolutions with strides."""
    classes = itertools.product(*(_axis(g, d) for d in range(g.dims)))
    return [tuple(_number(parts, g) for parts in itertools.product(*chosen)) for chosen in classes]


def _axis(g: Geometry, d: int) -> list[list[tuple[int, int]]]:
    """For every class along axis d: (tap, step from the output's place to what the tap reads)."""
    if not g.transposed:
        return [[(k, k * g.dilation[d]) for k in range(g.kernel[d])]]
    # Output o reads tap k from input (o + padding - k·dilation)/stride where that is whole.
    reach, stride = [k * g.dilation[d] for k in range(g.kernel[d])], g.stride[d]
    return [[(k, -((at - r) // stride)) for k, at in enumerate(reach) if (at - r) % stride == 0] for r in range(stride)]


def _number(parts: Sequence[tuple[int, int]], g: Geometry) -> int:
    """The number of a tap in the flattened kernel."""
    index = 0
    for size, (k, _) in zip(g.kernel, parts, strict=True):
        index = index * size + k
    return index


def _missing(tables: _Tables, one: _Class, outputs: Tensor, spatial, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """(output, tap) pairs outside the grid, in order, of some outputs of one sample."""
    outside = torch.zeros(len(outputs), len(one.taps), dtype=torch.bool, device=outputs.device)
    places = torch.unravel_index(outputs, geometry.output_size(spatial))
    for d, (place, size) in enumerate(zip(places, spatial, strict=True)):
        at = tables.coordinates[d].index_select(0, place)[:, None] + one.steps[:, d]
        outside |= (at < 0) | (at >= size)
    return outside.nonzero(as_tuple=True)


@lru_cache(maxsize=64)
def _tables(spatial: tuple[int, ...], geometry: Geometry, device: torch.device) -> _Tables:
    with torch.inference_mode(False):
        return _make_tables(spatial, geometry, device)


def _make_tables(spatial: tuple[int, ...], g: Geometry, device: torch.device) -> _Tables:
    outputs = g.output_size(spatial)
    strides = [math.prod(spatial[d + 1 :]) for d in range(g.dims)]
    options = [_axis(g, d) for d in range(g.dims)]
    coordinates, remainders = [], []
    for d, size in enumerate(outputs):
        at = torch.arange(size)
        if g.transposed:
            coordinates.append((at + g.padding[d]) // g.stride[d])
            remainders.append((at + g.padding[d]) % g.stride[d])
        else:
            coordinates.append(at * g.stride[d] - g.padding[d])
            remainders.append(torch.zeros(size, dtype=torch.int64))
    base, kind = torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64)
    for d in range(g.dims):
        base = base[..., None] + coordinates[d] * strides[d]
        kind = kind[..., None] * len(options[d]) + remainders[d]
    classes = []
    for chosen in itertools.product(*options):
        taps = [_number(parts, g) for parts in itertools.product(*chosen)]
        moves = torch.tensor([[step for _, step in parts] for parts in itertools.product(*chosen)], dtype=torch.int64)
        moves = moves.view(-1, g.dims)
        border = torch.zeros(outputs, dtype=torch.bool)
        for d, size in enumerate(spatial):
            if len(moves):
                at = coordinates[d]
                low, high = at + moves[:, d].min() < 0, at + moves[:, d].max() >= size
                border |= (low | high).view([-1 if e == d else 1 for e in range(g.dims)])
        offsets = moves @ torch.tensor(strides)
        classes.append(_Class(tuple(taps), moves.to(device), offsets.to(device), border.flatten().to(device)))
    small = base.numel() and int(base.abs().max()) < 1 << 31
    return _Tables(
        base.flatten().to(device, torch.int32 if small else torch.int64),
        kind.flatten().to(device) if len(classes) > 1 else None,
        tuple(classes),
        tuple(one.to(device) for one in coordinates),
    )
