"""One sparse mask convolution by the native kernels: kept rows in full, dropped rows from dense to dense channels."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsemask.sparse.derived import Derived
from sparsemask.sparse.native import library
from sparsemask.sparse.native.grid import Grid, grid
from sparsemask.sparse.native.library import Segment, Target
from sparsemask.sparse.native.rows import from_rows, to_rows

_derived = Derived()


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mask: Tensor,
    in_dense: Tensor,
    out_dense: Tensor,
    geometry,
    activation: str,
) -> Tensor:
    """See :mod:`sparsemask.sparse.backends`; x (N, C, *spatial) float32, mask bool (N, 1, *out spatial)."""
    batch, spatial = x.shape[0], tuple(x.shape[2:])
    outputs = geometry.output_size(spatial)
    tables = grid(batch, spatial, geometry)
    rows = to_rows(x)
    kept, dropped, _ = library.split(mask.contiguous())
    depthwise = geometry.groups > 1 and geometry.groups == x.shape[1] == len(out_dense)
    sources = [weight, in_dense, out_dense] + ([bias] if bias is not None else [])

    def make():
        return _Parts(weight, bias, in_dense, out_dense, geometry, tables, depthwise)

    # Of the size matters only which classes of outputs there are.
    parts = _derived.get(sources, make, (geometry, tuple(map(min, outputs, geometry.stride))))
    out = library.empty(len(tables.position), len(out_dense))
    act = activation_code(activation)
    parts.full.run(rows, tables, kept, out, kept, act)
    if parts.dense is None:
        library.fill(out, dropped)
    elif parts.places is None:
        parts.dense.run(rows, tables, dropped, out, dropped, act)
    else:
        values = rows.new_empty(len(dropped), parts.dense.columns)
        parts.dense.run(
            rows if parts.ins is None else library.narrow(rows, parts.ins), tables, dropped, values, None, act
        )
        library.fill(out, dropped, values, parts.places)
    return from_rows(out, batch, outputs, x)


def activation_code(name: str) -> tuple[int, float]:
    """What the kernels call an activation: "none", "relu", "leaky_relu:0.1"."""
    kind, _, slope = name.partition(":")
    return {"none": 0, "relu": 1, "leaky_relu": 2}[kind], float(slope or 0.01)


class _Parts:
    """The split and packed weights of a layer."""

    def __init__(self, weight, bias, in_dense, out_dense, geometry, tables: Grid, depthwise: bool):
        # (taps, C_in / groups, C_out): torch lays transposed weights out with the inputs first.
        groups = geometry.groups
        taps = weight.detach().to(torch.float32).flatten(2)
        if geometry.transposed:
            taps = taps.unflatten(0, (groups, -1)).permute(3, 1, 0, 2).flatten(2)
        else:
            taps = taps.permute(2, 1, 0)
        bias = bias.detach().to(torch.float32) if bias is not None else None
        self.full = Product(taps, bias, groups, depthwise, tables)
        self.dense, self.places, self.ins = None, None, None
        if not bool(out_dense.any()):
            return
        if groups > 1:
            # Group by group the dense channels differ in number: the weights of the others are zero instead.
            per = in_dense.view(groups, -1).repeat_interleave(len(out_dense) // groups, 0).T
            dense_bias = bias * out_dense if bias is not None else None
            self.dense = Product(taps * per * out_dense, dense_bias, groups, depthwise, tables)
        else:
            self.places = out_dense.nonzero().flatten().to(torch.int32)
            if not bool(in_dense.all()):
                self.ins = in_dense.nonzero().flatten().to(torch.int32)
            dense = taps[:, in_dense][:, :, out_dense]
            self.dense = Product(dense, bias[out_dense] if bias is not None else None, 1, False, tables)


class Product:
    """Packed weights of a convolution (taps, C_in / groups, C_out), ready to run over any rows of outputs."""

    def __init__(self, taps: Tensor, bias: Tensor | None, groups: int, depthwise: bool, tables: Grid):
        self.groups = 1 if depthwise else groups
        self.depth, self.columns, self.depthwise = taps.shape[1], taps.shape[2], depthwise
        self.bias = bias.clone() if bias is not None else None  # not the live parameter
        self.packed = []
        for one in tables.classes:
            chosen = taps[[index for index, _ in one.taps]]  # (taps of the class, depth, columns)
            wide = self.columns // self.groups
            self.packed.append(
                [
                    chosen.reshape(len(one.taps), self.columns).contiguous()
                    if depthwise
                    else library.pack(chosen[..., g * wide : (g + 1) * wide].reshape(-1, wide))
                    for g in range(self.groups)
                ]
            )

    def run(
        self, rows: Tensor, tables: Grid, listed: Tensor, out: Tensor, at: Tensor | None, act: tuple[int, float]
    ) -> None:
        """Compute the outputs `listed` (n,) int32 from rows (R, C_in), into row at[i] (or i) of `out` (·, C_out)."""
        wide, deep = self.columns // self.groups, self.depth if not self.depthwise else self.columns
        parts = [(listed, at)]
        if tables.kind is not None:
            parts = [
                (values, places if at is None else values if at is listed else at[places.long()])
                for values, places in library.partition(listed, tables.kind, len(tables.classes))
            ]
        for one, packed, (mine, there) in zip(tables.classes, self.packed, parts, strict=True):
            pos = library.lookup(mine, tables.position)
            for g in range(self.groups):
                part = rows[:, g * deep : (g + 1) * deep]
                segments = [Segment(part, tables.interior, offset, deep) for _, offset in one.taps]
                target = Target(out[:, g * wide : (g + 1) * wide], there)
                bias = self.bias[g * wide : (g + 1) * wide] if self.bias is not None else None
                library.product(
                    pos, segments, packed[g], wide, target, bias=bias, activation=act, depthwise=self.depthwise
                )
