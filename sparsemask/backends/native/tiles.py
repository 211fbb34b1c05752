"""Products of rows in bfloat16, summed in float32: by matrix tiles (AMX, src/tiles.h), or by dot products of pairs
(AVX512-BF16, src/dots.h), which read the same packed weights. Tiles serve where a processor has both."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sparsemask.backends.native import library
from sparsemask.backends.native.workspace import Workspace

STEP = 32  # channels of a tile: rows are as long as a multiple of it
KINDS = ("none", "amx", "emulated", "dot", "emulated dot")  # as sm_tiles numbers them
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
    ]


def in_use() -> str:
    """What products are computed by: "amx" or "dot", the processor's; or an emulation of them, for tests; or "none"."""
    return KINDS[library.lib().sm_tiles(-1)]


@contextlib.contextmanager
def using(kind: str) -> Iterator[str]:
    """Within the `with`, products are computed by a kind; gives the one in use: "none" where it is not had.

    Args:
        kind: of :data:`KINDS`; "emulated" is of tiles.
    """
    lib = library.lib()
    before = lib.sm_tiles(-1)
    try:
        yield KINDS[lib.sm_tiles(KINDS.index(kind))]
    finally:
        lib.sm_tiles(before)


def up_to(channels: int) -> int:
    """The next multiple of a tile's channels."""
    return -(-channels // STEP) * STEP


def pack(weights: Tensor) -> Tensor:
    """Weights (segments, depth, columns) of any type in the order the kernels read them, rounded to bfloat16.

    Every segment's depth is filled up with zeros to what :func:`up_to` says.
    """
    segments, depth, columns = weights.shape
    whole = torch.zeros(segments, up_to(depth), columns, dtype=torch.bfloat16)
    whole[:, :depth] = weights
    packed = empty(1, whole.shape[0] * whole.shape[1] * up_to(columns))
    library.lib().sm_pack_tiles(whole.data_ptr(), segments * whole.shape[1], columns, packed.data_ptr())
    return packed


def padded(bias: Tensor | None) -> Tensor | None:
    """A bias (columns,) as products read it: float32, zeros up to whole vectors."""
    if bias is None:
        return None
    whole = torch.zeros(up_to(len(bias)))
    whole[: len(bias)] = bias.detach()
    return whole


def empty(rows: int, columns: int, space: Workspace | None = None) -> Tensor:
    """Uninitialised bfloat16 (rows, columns); the first row, and all if they are whole steps long, begin a cache line.

    Args:
        rows, columns: how many.
        space: where the memory comes from; None: fresh.
    """
    floats = -(-rows * columns // 2) + 16
    memory = library.empty(floats, 1).view(-1) if space is None else space.take(floats, 1).view(-1)
    skipped = -memory.data_ptr() % 64 // 4
    return memory[skipped:].view(torch.bfloat16)[: rows * columns].view(rows, columns)


def rows_of(x: Tensor) -> Tensor:
    """Rows (N·locations, C filled up with zeros) of x (N, C, *spatial) bfloat16, without a copy where they lie so."""
    rows = x.movedim(1, -1).reshape(-1, x.shape[1])
    if x.shape[1] % STEP == 0 and rows.is_contiguous() and rows.data_ptr() % 64 == 0:
        return rows
    whole = empty(len(rows), up_to(x.shape[1]))
    whole[:, x.shape[1] :] = 0
    whole[:, : x.shape[1]] = rows
    return whole


class Segment(NamedTuple):
    """Channels that every output reads: the first ones of row map[pos + offset] of `rows` (R, up to a step)."""

    rows: Tensor
    map: Tensor | None
    offset: int
    channels: int


def product(
    pos: Tensor,
    segments: Sequence[Segment],
    packed: Tensor | None,
    columns: int,
    out: Tensor,
    at: Tensor | None = None,
    *,
    bias: Tensor | None = None,
    activation: tuple[int, float] = (0, 0.0),
    add: Tensor | None = None,
    sums: Tensor | None = None,
    places: Tensor | None = None,
) -> None:
    """act(rows · weights + bias + add) over the output rows at `pos`, which rise.

    Args:
        pos: int32 (n,).
        segments: what is read.
        packed: of all segments' weights, as :func:`pack` gives them; None with no columns.
        columns: outputs.
        out: bfloat16 (R, columns or more); row at[r] (or r) is written, with zeros where it has no outputs.
        at: int32 (n,) or None.
        bias: as :func:`padded` gives it.
        activation: (code, slope).
        add: bfloat16 (R, columns or more), read at the rows that are written.
        sums: float64 (threads, columns), to which the outputs are added.
        places: int32 (columns,), where in a row the outputs go, without `add`; None: the first columns.
    """
    if not len(pos):
        return
    listed = np.array(
        [
            (rows.data_ptr(), 0 if map is None else map.data_ptr(), rows.stride(0), offset, up_to(channels), channels)
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
        packed=packed.data_ptr() if packed is not None else None,
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
    )
    library.lib().sm_tile_product(ctypes.addressof(args))
