"""One sparse mask convolution by the native kernels: kept rows in full, dropped rows from dense to dense channels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sparsemask.backends.native import library
from sparsemask.backends.native.grid import Grid, grid
from sparsemask.backends.native.library import Taps, Target
from sparsemask.backends.native.rows import from_rows, to_rows
from sparsemask.ops import activation
from sparsemask.ops.conv import ConvCall
from sparsemask.ops.dense_part import dense_conv
from sparsemask.ops.weight_cache import Derived

_derived = Derived()
FEW = 8  # outputs, up to which they are computed as inner products
ALIGNED = 8  # floats: inner products go by so many channels


def conv(call: ConvCall) -> Tensor:
    """One sparse mask convolution: kept rows by products of rows."""
    x, outputs = call.x, call.geometry.output_size(call.x.shape[2:])
    tables = grid(x.shape[0], tuple(x.shape[2:]), call.geometry)
    rows = to_rows(x)
    kept, dropped, _ = library.split(call.mask.contiguous(), compact=False)
    parts = _parts(call, tables, outputs)
    out = library.empty(len(tables.position), len(call.out_dense))
    act = activation_code(call.activation)
    _drop(parts, rows, tables, dropped, out, act, parts.full.calls(rows, tables, kept, out, act))
    return from_rows(out, x.shape[0], outputs, x)


def whole_conv(call: ConvCall) -> Tensor:
    """One sparse mask convolution: all rows by torch's convolution, dropped ones set afterwards."""
    x, outputs = call.x, call.geometry.output_size(call.x.shape[2:])
    whole = activation.apply_(call.activation, dense_conv(x, call.weight, call.bias, call.geometry))
    dense, every = _counted(call.out_dense)
    reads_dense = _counted(call.in_dense)[1]
    if every and reads_dense:
        return whole
    _, dropped, _ = library.split(call.mask.contiguous(), compact=False)
    if not len(dropped):
        return whole
    out = to_rows(whole)
    if not dense:
        library.fill(out, dropped)
    elif reads_dense:  # what they are to be is there already
        places = _derived.get([call.out_dense], lambda: call.out_dense.nonzero().flatten().to(torch.int32), "places")
        library.fill(out, dropped, library.narrow(out, places), places)
    else:
        tables = grid(x.shape[0], tuple(x.shape[2:]), call.geometry)
        _drop(
            _parts(call, tables, outputs), to_rows(x), tables, dropped, out, activation_code(call.activation), []
        )  # fmt: skip
    return from_rows(out, x.shape[0], outputs, x)


def _counted(flags: Tensor) -> tuple[bool, bool]:
    """Whether any of the flags is set, and whether all are; by NumPy, whose overhead is the smaller one."""
    count = int(np.count_nonzero(flags.numpy()))
    return count > 0, count == len(flags)


def _parts(call: ConvCall, tables: Grid, outputs: tuple[int, ...]) -> _Parts:
    """A layer's split weights. Of the size matters only which classes of outputs there are."""
    weight, bias, in_dense, out_dense, geometry = call.weight, call.bias, call.in_dense, call.out_dense, call.geometry
    depthwise = geometry.groups > 1 and geometry.groups == call.x.shape[1] == len(out_dense)
    sources = [weight, in_dense, out_dense] + ([bias] if bias is not None else [])

    def make() -> _Parts:
        return _Parts(weight, bias, in_dense, out_dense, geometry, tables, depthwise)

    return _derived.get(sources, make, (geometry, tuple(map(min, outputs, geometry.stride))))


def _drop(
    parts: _Parts, rows: Tensor, tables: Grid, dropped: Tensor, out: Tensor, act: tuple[int, float],
    calls: list[library.Call],
) -> None:  # fmt: skip
    """Set the dropped rows of `out`: dense channels of dense ones, zeros elsewhere; `calls` are run beside."""
    values = None
    if parts.dense is None:
        library.fill(out, dropped)
    elif parts.places is None or parts.dense.narrow:
        if parts.first and not parts.dense.narrow:
            library.fill(out[:, parts.dense.columns :], dropped)
        calls += parts.dense.calls(parts.read(rows), tables, dropped, out, act)
    else:
        values = library.empty(len(out), parts.dense.columns)
        calls += parts.dense.calls(parts.read(rows), tables, dropped, values, act)
    library.products(calls)
    if values is not None:
        library.fill(out, dropped, values, parts.places)


RELU = 1  # its code


def activation_code(name: str) -> tuple[int, float]:
    """What the kernels call an activation: "none", "relu", "leaky_relu:0.1"."""
    kind, _, slope = name.partition(":")
    return {"none": 0, "relu": RELU, "leaky_relu": 2}[kind], float(slope or 0.01)


class _Parts:
    """The split and packed weights of a layer; first: its dense outputs are the first ones, else `places`."""

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
        self.dense, self.places, self.ins, self.first = None, None, None, False
        if not bool(out_dense.any()):
            return
        if groups > 1:
            # Group by group the dense channels differ in number: the weights of the others are zero instead.
            per = in_dense.view(groups, -1).repeat_interleave(len(out_dense) // groups, 0).T
            dense_bias = bias * out_dense if bias is not None else None
            self.dense = Product(taps * per * out_dense, dense_bias, groups, depthwise, tables)
            return
        self.first = leading(out_dense)
        self.places = None if self.first else out_dense.nonzero().flatten().to(torch.int32)
        dense, bias = taps[..., out_dense], bias[out_dense] if bias is not None else None
        count, every = int(in_dense.sum()), taps.shape[1]
        read = count if leading(in_dense) else every  # channels up to the last dense one
        length = -(-read // ALIGNED) * ALIGNED
        if dense.shape[2] <= FEW and length <= every:
            # Few outputs: reading sparse channels, times zero, costs less than taking the dense ones out.
            dense = (dense * in_dense.view(1, -1, 1))[:, :length]
            self.dense = Product(dense, bias, 1, False, tables, narrow=True, clear=len(out_dense), places=self.places)
            return
        if read > count:
            self.ins = in_dense.nonzero().flatten().to(torch.int32)
        self.dense = Product(dense[:, in_dense], bias, 1, False, tables)

    def read(self, rows: Tensor) -> Tensor:
        """The rows that the dense part reads."""
        return rows if self.ins is None else library.narrow(rows, self.ins)


def leading(flags: Tensor) -> bool:
    """Whether the true entries of flags (C,) come first."""
    return bool(flags[: int(flags.sum())].all())


class Product:
    """Packed weights of a convolution (taps, C_in / groups, C_out), ready to run over any rows of outputs.

    narrow, clear, places: as inner products, for few outputs, see :class:`library.Call`.
    """

    def __init__(
        self, taps: Tensor, bias: Tensor | None, groups: int, depthwise: bool, tables: Grid, *, narrow: bool = False,
        clear: int = 0, places: Tensor | None = None,
    ):  # fmt: skip
        self.groups = 1 if depthwise else groups
        self.depth, self.columns, self.depthwise = taps.shape[1], taps.shape[2], depthwise
        self.narrow = narrow
        plain = narrow or depthwise
        group = 0 if plain else library.group_of(self.columns // self.groups, self.depth)
        self.more = {"narrow": narrow, "clear": clear, "places": places, "group": group}
        self.bias = bias.clone() if bias is not None else None  # not the live parameter
        squared = tables.pitch and not plain and self.groups == 1 and library.in_squares(self.depth, self.columns)
        self.squared = library.pack_squares(taps) if squared else None
        self.packed = []
        for one in tables.classes:
            chosen = taps[[index for index, _ in one.taps]]  # (taps of the class, depth, columns)
            wide = self.columns // self.groups
            if narrow:
                self.packed.append([library.pack_narrow(chosen)])
                continue
            self.packed.append(
                [
                    chosen.reshape(len(one.taps), self.columns).contiguous()
                    if depthwise
                    else library.pack(chosen[..., g * wide : (g + 1) * wide].reshape(-1, wide), group)
                    for g in range(self.groups)
                ]
            )

    def calls(
        self, rows: Tensor, tables: Grid, listed: Tensor, out: Tensor, act: tuple[int, float], *,
        slopes: Tensor | None = None, side_by_side: bool = False, squares: tuple[Tensor, Tensor] | None = None,
    ) -> list[library.Call]:  # fmt: skip
        """What computes the outputs `listed` (n,) int32 from rows (R, C_in) into their rows of `out` (·, C_out).

        Depth-wise products are run at once. slopes: (C_out,), see :class:`library.Call`. side_by_side: outputs of one
        class go to the first n rows of `out` instead. squares: :func:`library.squares` of `listed`, if it is at hand.
        """
        wide, deep = self.columns // self.groups, self.depth if not self.depthwise else self.columns
        pos = library.lookup(listed, tables.position)
        parts: list[tuple[Tensor | None, Tensor]] = [(None if side_by_side else listed, pos)]
        calls: list[library.Call] = []
        if self.squared is not None:
            found, rest = squares or library.squares(pos, tables.pitch)
            to_found, to_rest = (
                outputs if side_by_side else library.lookup(outputs, listed) for outputs in (found.flatten(), rest)
            )
            begins = Taps(rows, tables.interior, tables.classes[0].offsets[:: library.TAPS_OF_SQUARES], deep)
            calls.append(
                library.Call(
                    library.lookup(found[:, 0].contiguous(), pos), begins, self.squared, wide, Target(out, to_found),
                    bias=self.bias, activation=act, slopes=slopes, pitch=tables.pitch,
                )
            )  # fmt: skip
            parts = [(to_rest, library.lookup(rest, pos))]
        elif tables.kind is not None:
            parts = list(library.partition(listed, tables.kind, len(tables.classes), tables.position))
        for one, packed, (to, pos) in zip(tables.classes, self.packed, parts, strict=True):
            for g in range(self.groups):
                part = rows[:, g * deep : (g + 1) * deep]
                segments = Taps(part, tables.interior, one.offsets, deep)
                target = Target(out[:, g * wide : (g + 1) * wide], to)
                bias, mine_slopes = (
                    None if one is None else one[g * wide : (g + 1) * wide] for one in (self.bias, slopes)
                )
                ending = {"bias": bias, "activation": act, "slopes": mine_slopes}
                if self.depthwise:
                    library.product(pos, segments, packed[g], wide, target, **ending, depthwise=True)
                    continue
                calls.append(library.Call(pos, segments, packed[g], wide, target, **ending, **self.more))
        return calls
