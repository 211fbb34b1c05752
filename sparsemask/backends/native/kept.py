"""Chains under one mask in rows of kept locations alone: what neighbours drop is one shared row of zeros.

Outputs of a layer lie side by side, as those before it do; where a kept location's neighbours lie among them is looked
up in one table a geometry, made once a mask.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
from torch import Tensor

from sparsemask.backends.native import bfloat16, library, tiles
from sparsemask.backends.native.bfloat16 import read_rows
from sparsemask.backends.native.conv import RELU, Product, activation_code
from sparsemask.backends.native.grid import Grid, grid
from sparsemask.backends.native.library import Segment, Target
from sparsemask.backends.native.rows import from_rows, to_rows
from sparsemask.ops.geometry import Geometry
from sparsemask.ops.kept_conv import KeptConvCall, activated, as_kept, rows_of_kept
from sparsemask.ops.merge_kept import MergeKeptCall
from sparsemask.ops.weight_cache import Derived

_derived = Derived()
_masks = Derived(entries=2)  # a region at a time; tables are as large as maps


class _Locations:
    """Kept and dropped locations of a mask, and where kept ones lie on the grid of a geometry."""

    def __init__(self, mask: Tensor):
        self._batch, self._spatial = len(mask), tuple(mask.shape[2:])
        self.kept, self.dropped, self._compact = library.split(mask.contiguous())
        self._grids: dict[Geometry, Grid] = {}
        self._squares: tuple[Tensor, Tensor] | None = None  # of all convolutions: 3×3 that keep the size read alike

    def grid(self, geometry: Geometry, kept: bool) -> Grid:
        """The tables of a geometry, for features of all locations or of the kept ones."""
        tables = grid(self._batch, self._spatial, geometry)
        if not kept:
            return tables
        found = self._grids.get(geometry)
        if found is None:
            interior = library.lookup(tables.interior, cast(Tensor, self._compact))
            found = self._grids[geometry] = dataclasses.replace(tables, interior=interior)
        return found

    def squares(self, tables: Grid) -> tuple[Tensor, Tensor]:
        """Squares among the kept ones; see :func:`library.squares`."""
        if self._squares is None:
            self._squares = library.squares(library.lookup(self.kept, tables.position), tables.pitch)
        return self._squares


def _locations(mask: Tensor) -> _Locations:
    found: _Locations = _masks.get([mask], lambda: _Locations(mask))
    return found


def conv(call: KeptConvCall) -> Tensor:
    """See :mod:`sparsemask.ops.kept_conv`; in float32."""
    places, weight, bias = _locations(call.mask), call.weight, call.bias
    tables = places.grid(without_groups(call.geometry), call.kept)
    sources = [one for one in (weight, bias, call.slopes) if one is not None]
    layer: Layer = _derived.get(
        sources, lambda: Layer(weight, bias, call.geometry, call.activation, call.slopes, tables),
        (call.geometry, call.activation),
    )  # fmt: skip
    out = library.empty(len(places.kept), len(weight))
    rows, act = _rows(call.x) if call.kept else to_rows(call.x), activation_code(layer.activation)
    squares = None if layer.product.squared is None else places.squares(tables)
    library.products(
        layer.product.calls(
            rows, tables, places.kept, out, act, slopes=layer.slopes, side_by_side=True, squares=squares
        )
    )
    return as_kept(out)


class Layer:
    """A convolution's packed weights, and what comes behind it, as the kernels take it.

    Attributes:
        product: the weights.
        activation: its name.
        slopes: of the activation "leaky_relu", for every output, (C_out,); or None.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, geometry: Geometry, activation: str, slopes: Tensor | None,
        tables: Grid,
    ):  # fmt: skip
        outs, groups = len(weight), geometry.groups
        depthwise = groups == weight.shape[1] * groups == outs
        bias = None if bias is None else bias.detach().float()
        self.product = Product(weight.detach().float().flatten(2).permute(2, 1, 0), bias, groups, depthwise, tables)
        self.activation, self.slopes = activation, None
        if slopes is not None:
            code, slope = activation_code(activation)
            before = {0: 1.0, RELU: 0.0}.get(code, slope)  # of the activation that the PReLU stands behind
            self.activation, self.slopes = "leaky_relu", before * slopes.detach().float().expand(outs)


def packed_conv(call: KeptConvCall, kind: torch.dtype) -> Tensor:
    """The same in bfloat16, products in `kind`, bfloat16 or int8; without groups."""
    places = _locations(call.mask)
    tables = places.grid(without_groups(call.geometry), call.kept)
    sources = [call.weight] if call.bias is None else [call.weight, call.bias]

    def make() -> bfloat16.Product:
        taps = call.weight.detach().float().flatten(2).permute(2, 1, 0)
        return bfloat16.Product(taps, call.bias, tables, kind)

    product: bfloat16.Product = _derived.get(sources, make, (call.geometry, kind))
    out = tiles.empty(len(places.kept), tiles.up_to(len(call.weight)))
    rows, act = read_rows(tiles.rows_of(call.x), kind), activation_code(call.activation)
    product.run(rows, tables, places.kept, out, act, side_by_side=True)
    return activated(call, as_kept(out[:, : len(call.weight)]))


def without_groups(geometry: Geometry) -> Geometry:
    """Tables do not depend on groups."""
    return geometry if geometry.groups == 1 else dataclasses.replace(geometry, groups=1)


def _rows(x: Tensor) -> Tensor:
    """Kept features as rows whose channels lie side by side."""
    rows = rows_of_kept(x)
    return rows if rows.stride(1) == 1 else rows.contiguous()


def merge(call: MergeKeptCall) -> Tensor:
    """See :mod:`sparsemask.ops.merge_kept`; in float32."""
    places, weight = _locations(call.mask), call.weight
    columns, depth = len(weight), weight.shape[1]
    depthwise = depth == 1 and columns == call.x.shape[1]
    sources = [weight] if call.bias is None else [weight, call.bias]

    def make() -> tuple[Tensor, Tensor | None]:
        taps = weight.detach().flatten(1).T.contiguous()
        return (taps.clone() if depthwise else library.pack(taps)), None if call.bias is None else call.bias.clone()

    packed, bias = _derived.get(sources, make, "merge")
    rows = to_rows(call.x)
    out = library.empty(len(rows), columns)
    out.index_copy_(0, call.places, rows_of_kept(call.y))
    target, read = Target(out, places.dropped), [Segment(rows, None, 0, rows.shape[1])]
    library.product(places.dropped, read, packed, columns, target, bias=bias, depthwise=depthwise)
    return from_rows(out, len(call.x), tuple(call.x.shape[2:]), call.x)
