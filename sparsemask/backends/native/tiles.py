"""Products of rows in bfloat16, summed in float32, and in int8, summed in int32.

In bfloat16 by matrix tiles (AMX, src/tiles.h), or by dot products of pairs (AVX512-BF16, src/dots.h), which read the
same packed weights; tiles serve where a processor has both. In int8 by dot products of four (AVX512-VNNI). A number q
of a row in int8, 0 to 255, stands for (q - zero) · scale, its :class:`Quantum`; weights are whole numbers times a scale
of each column. The kind of a product is the type of its rows.
"""

from __future__ import annotations

import contextlib
import ctypes
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparsemask.backends.native import library
from sparsemask.backends.native.workspace import Workspace

BFLOAT16, INT8 = torch.bfloat16, torch.uint8  # kinds of products
KINDS = ("none", "amx", "emulated", "dot", "emulated dot")  # of products in bfloat16, as sm_tiles numbers them
INT8_KINDS = ("none", "vnni", "emulated vnni")
_NUMBERS = {**{name: n for n, name in enumerate(KINDS)}, "vnni": 5, "emulated vnni": 6}
DEEPEST = 2**31 // (255 * 127)  # numbers that a product in int8 may sum
_LINE = 64  # bytes: rows are as long as a multiple of them
_P, _I = ctypes.c_void_p, ctypes.c_int64


class _TileProduct(ctypes.Structure):
    _fields_ = [
        ("rows", _I),
        ("pos", _P),
        ("n_segments", _I),
        ("segments", _P),
        ("columns", _I),
        ("packed", _P),
        ("bias", _P),
        ("activation", _I),
        ("slope", ctypes.c_double),
        ("out", _P),
        ("at", _P),
        ("stride", _I),
        ("clear", _I),
        ("add", _P),
        ("add_stride", _I),
        ("sums", _P),
        ("threads", _I),
        ("places", _P),
        ("scales", _P),
        ("shift", _P),
        ("zero", _I),
        ("steps", ctypes.c_double),
        ("out_zero", _I),
    ]


class Quantum(NamedTuple):
    """What numbers q of rows in int8 stand for: (q - zero) · scale."""

    scale: float
    zero: int

    @classmethod
    def of(cls, least: float, most: float) -> Quantum:
        """The finest that holds values from least <= 0 to most >= 0; not a number, where one of them is not."""
        scale = (most - least) / 255
        if not 0 < scale < math.inf:
            return cls(math.nan if scale else 1.0, 0)
        return cls(scale, round(-least / scale))


class Packed(NamedTuple):
    """Weights as products read them. In int8 a weight is its number times the scale of its column.

    Attributes:
        numbers: in the kernels' order.
        scales, totals: in int8, (columns filled up,): of every column the scale, float32, and its numbers' sum, int32.
    """

    numbers: Tensor
    scales: Tensor | None = None
    totals: Tensor | None = None


def in_use(kind: torch.dtype = BFLOAT16) -> str:
    """What products are computed by: "amx", "dot" or "vnni", the processor's; an emulation of them, for tests; "none".

    Args:
        kind: of products, BFLOAT16 or INT8.
    """
    number = library.lib().sm_tiles(kind.itemsize, -1)
    return next(name for name in (*KINDS, *INT8_KINDS) if _NUMBERS[name] == number)


@contextlib.contextmanager
def using(name: str, kind: torch.dtype = BFLOAT16) -> Iterator[str]:
    """Within the `with`, products are computed so; gives what they are computed by: "none" where it is not had.

    Args:
        name: of :data:`KINDS`, of which "emulated" is of tiles, or of :data:`INT8_KINDS`.
        kind: of products that "none" is meant for.
    """
    lib, size = library.lib(), (INT8 if name in INT8_KINDS[1:] else kind).itemsize
    before = lib.sm_tiles(size, -1)
    try:
        lib.sm_tiles(size, _NUMBERS[name])
        yield in_use(INT8 if size == 1 else BFLOAT16)
    finally:
        lib.sm_tiles(size, before)


def up_to(channels: int, kind: torch.dtype = BFLOAT16) -> int:
    """As many numbers as rows of so many channels have: whole cache lines."""
    step = _LINE // kind.itemsize
    return -(-channels // step) * step


def pack(weights: Tensor, kind: torch.dtype = BFLOAT16) -> Packed:
    """Weights (segments, depth, columns) of any type, rounded, in the order the kernels read them.

    Every segment's depth is filled up with zeros to what :func:`up_to` says.
    """
    segments, depth, columns = weights.shape
    whole = torch.zeros(segments, up_to(depth, kind), columns)
    whole[:, :depth] = weights
    scales = totals = None
    if kind == INT8:
        scale = whole.abs().amax((0, 1)) / 127
        whole = (whole / scale.where(scale > 0, torch.ones(()))).round_()
        scales, totals = padded(scale), padded(whole.sum((0, 1))).to(torch.int32)
    numbers = whole.to(torch.int8 if kind == INT8 else kind)
    packed = empty(1, whole.shape[0] * whole.shape[1] * up_to(columns), kind=kind)
    rows = segments * whole.shape[1]
    library.lib().sm_pack_tiles(kind.itemsize, numbers.data_ptr(), rows, columns, packed.data_ptr())
    return Packed(packed, scales, totals)


def padded(bias: Tensor | None) -> Tensor | None:
    """A bias (columns,) as products read it: float32, zeros up to whole vectors."""
    if bias is None:
        return None
    whole = torch.zeros(up_to(len(bias)))
    whole[: len(bias)] = bias.detach()
    return whole


def empty(
    rows: int, columns: int, space: Workspace | None = None, kind: torch.dtype = BFLOAT16
) -> Tensor:  # fmt: skip
    """Uninitialised (rows, columns); the first row, and all if they are whole cache lines long, begin a cache line.

    Args:
        rows, columns: how many.
        space: where the memory comes from; None: fresh.
        kind: of the numbers.
    """
    floats = -(-rows * columns * kind.itemsize // 4) + 16
    memory = library.empty(floats, 1).view(-1) if space is None else space.take(floats, 1).view(-1)
    skipped = -memory.data_ptr() % 64 // 4
    return memory[skipped:].view(kind)[: rows * columns].view(rows, columns)


def rows_of(x: Tensor) -> Tensor:
    """Rows (N·locations, C filled up with zeros) of x (N, C, *spatial) bfloat16, without a copy where they lie so."""
    rows = x.movedim(1, -1).reshape(-1, x.shape[1])
    if x.shape[1] == up_to(x.shape[1]) and rows.is_contiguous() and rows.data_ptr() % 64 == 0:
        return rows
    whole = empty(len(rows), up_to(x.shape[1]))
    whole[:, x.shape[1] :] = 0
    whole[:, : x.shape[1]] = rows
    return whole


def range_of(rows: Tensor) -> tuple[float, float]:
    """(least, most) of zero and rows (R, C) bfloat16, contiguous; NaN where there is one."""
    found = torch.empty(2, dtype=BFLOAT16)
    library.lib().sm_range(rows.data_ptr(), rows.numel(), found.data_ptr(), torch.get_num_threads())
    least, most = found.tolist()
    return least, most


def in_int8(rows: Tensor, quantum: Quantum, space: Workspace | None = None) -> Tensor:
    """Rows (R, C filled up) bfloat16 as numbers in int8 of a quantum, filled up; what it does not hold is cut."""
    out = empty(len(rows), up_to(rows.shape[1], INT8), space, INT8)
    library.lib().sm_to_int8(
        rows.data_ptr(), rows.stride(0), rows.shape[1], len(rows), 1 / quantum.scale, quantum.zero, out.data_ptr(),
        out.stride(0), torch.get_num_threads(),
    )  # fmt: skip
    return out


class Segment(NamedTuple):
    """Channels that every output reads: the first ones of row map[pos + offset] of `rows` (R, up to a line)."""

    rows: Tensor
    map: Tensor | None
    offset: int
    channels: int


def product(
    pos: Tensor,
    segments: Sequence[Segment],
    packed: Packed | None,
    columns: int,
    out: Tensor,
    at: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    activation: tuple[int, float] = (0, 0.0),
    add: Tensor | None = None,
    sums: Tensor | None = None,
    places: Tensor | None = None,
    read: Quantum | None = None,
    written: Quantum | None = None,
) -> None:
    """act(rows · weights + bias + add) over the output rows at `pos`, which rise.

    Args:
        pos: int32 (n,).
        segments: what is read.
        packed: of all segments' weights, as :func:`pack` gives them; None with no columns.
        columns: outputs.
        out: bfloat16, or int8 where `written` says so, (R, columns or more); row at[r] (or r) is written, with zeros
            where it has no outputs.
        at: int32 (n,) or None.
        bias: as :func:`padded` gives it.
        activation: (code, slope).
        add: bfloat16 (R, columns or more), read at the rows that are written.
        sums: float64 (threads, columns), to which the outputs are added.
        places: int32 (columns,), where in a row the outputs go, without `add`; None: the first columns.
        read: what the segments' numbers stand for, where they and the weights are in int8.
        written: what the outputs stand for, where these are in int8; what it does not hold is cut.
    """
    if not len(pos):
        return
    kind, scales, shift = BFLOAT16 if read is None else INT8, None, None
    if read is not None and packed is not None:
        # Numbers that stand for 0 count wherever something is read, outside of the picture, too.
        scales, shift = packed.scales * read.scale, packed.totals * read.zero if read.zero else None
    listed = np.array(
        [
            (
                rows.data_ptr(),
                0 if map is None else map.data_ptr(),
                rows.stride(0),
                offset,
                up_to(channels, kind),
                channels,
            )
            for rows, map, offset, channels in segments
        ],
        np.int64,
    ).reshape(-1, 6)
    args = _TileProduct(
        rows=len(pos),
        pos=pos.data_ptr(),
        n_segments=len(listed),
        segments=listed.ctypes.data,
        columns=columns,
        packed=packed.numbers.data_ptr() if packed is not None else None,
        bias=bias.data_ptr() if bias is not None else None,
        activation=activation[0],
        slope=activation[1],
        out=out.data_ptr(),
        at=at.data_ptr() if at is not None else None,
        stride=out.stride(0),
        clear=out.shape[1],
        add=add.data_ptr() if add is not None else None,
        add_stride=add.stride(0) if add is not None else 0,
        sums=sums.data_ptr() if sums is not None else None,
        threads=torch.get_num_threads(),
        places=places.data_ptr() if places is not None else None,
        scales=scales.data_ptr() if scales is not None else None,
        shift=shift.data_ptr() if shift is not None else None,
        zero=read.zero if read is not None else 0,
        steps=1 / written.scale if written is not None else 0.0,
        out_zero=written.zero if written is not None else 0,
    )
    run = library.lib().sm_tile_product if read is None else library.lib().sm_byte_product
    run(ctypes.addressof(args))
