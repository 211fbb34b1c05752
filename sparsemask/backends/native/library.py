"""The compiled kernels as Python functions on tensors; what they do stands in src/kernels.cpp and src/problem.h."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import platform
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.backends.native import build
from sparsemask.errors import UseError

LARGE = 1 << 20  # numbers from which memory is worth asking for large pages
LEAST = 16  # channels, read or written, for which squares of outputs are worth their transformation
NEAR = 1 << 18  # numbers that a core's cache holds
_P, _I = ctypes.c_void_p, ctypes.c_int64


class _Product(ctypes.Structure):
    _fields_ = [
        ("rows", _I),
        ("pos", _P),
        ("n_segments", _I),
        ("segments", _P),
        ("depth", _I),
        ("columns", _I),
        ("packed", _P),
        ("bias", _P),
        ("activation", _I),
        ("slope", ctypes.c_double),
        ("split", _I),
        ("out0", _P),
        ("at0", _P),
        ("stride0", _I),
        ("out1", _P),
        ("at1", _P),
        ("stride1", _I),
        ("add", _P),
        ("add_stride", _I),
        ("add_map", _P),
        ("sums", _P),
        ("threads", _I),
        ("narrow", _I),
        ("clear", _I),
        ("places", _P),
        ("slopes", _P),
        ("group", _I),
        ("pitch", _I),
    ]


@dataclass(frozen=True)
class Segment:
    """Channels that every output row reads: row map[pos + offset] of `rows` (R, C) float32, its first `length` ones."""

    rows: Tensor
    map: Tensor | None
    offset: int
    length: int

    def numbers(self) -> tuple[int, int, int, int, int]:
        """What the kernels are told."""
        map = 0 if self.map is None else self.map.data_ptr()
        return self.rows.data_ptr(), map, self.rows.stride(0), self.offset, self.length


@dataclass(frozen=True)
class Taps:
    """Segments that differ in the offset alone: those of a convolution's taps. offsets: int64 (taps,)."""

    rows: Tensor
    map: Tensor
    offsets: np.ndarray
    length: int

    def numbers(self) -> np.ndarray:
        """What the kernels are told, (taps, 5)."""
        told = np.empty((len(self.offsets), 5), np.int64)
        told[:] = self.rows.data_ptr(), self.map.data_ptr(), self.rows.stride(0), 0, self.length
        told[:, 3] = self.offsets
        return told


@dataclass(frozen=True)
class Target:
    """Where columns of the output go: row at[r] (or r) of `rows` (R, C) float32, from its column 0 on."""

    rows: Tensor
    at: Tensor | None = None


# Every entry of the library: the types of its arguments, and of its answer.
_ENTRIES: dict[str, tuple[list, type | None]] = {
    "sm_width": ([_I], _I),
    "sm_tiles": ([_I, _I], _I),
    "sm_pack_tiles": ([_I, _P, _I, _I, _P], None),
    "sm_tile_product": ([_P], None),
    "sm_byte_product": ([_P], None),
    "sm_range": ([_P, _I, _P, _I], None),
    "sm_to_int8": ([_P, _I, _I, _I, ctypes.c_double, _I, _P, _I, _I], None),
    "sm_pack": ([_P, _I, _I, _P], None),
    "sm_pack_groups": ([_P, _I, _I, _I, _P], None),
    "sm_split": ([_P, _I, _P, _P, _P], _I),
    "sm_partition": ([_P, _I, _P, _I, _P, _P, _P, _P], None),
    "sm_squares": ([_P, _I, _I, _P, _P], _I),
    "sm_lookup": ([_P, _I, _P, _P], None),
    "sm_fill": ([_P, _I, _I, _P, _I, _P, _P, _I, _I], None),
    "sm_narrow": ([_P, _I, _I, _P, _I, _P, _I], None),
    "sm_add_relu": ([_P, _P, _I, _I, _P, _I, _I], None),
    "sm_advise": ([_P, _I], None),
    "sm_keep_memory": ([], None),
    "sm_product": ([_P], None),
    "sm_products": ([_P, _I], None),
    "sm_depthwise": ([_P], None),
    "sm_points": ([_P], None),
    "sm_point_gradients": ([_P], None),
    "sm_point_bins": ([_P], None),
    "sm_point_readers": ([_P, _P, _I, _I, _P, _P, _P], None),
    "sm_point_means": ([_P, _I, _P, _I, _I, _P, _I], None),
    "sm_correlation": ([_P, _P, _I, _I, _I, _I, _I, _P, _I], None),
    "sm_inverted": ([_P], None),
    "sm_locate": ([_P], None),
    "sm_chain": ([_P, _I], None),
    "sm_scales": ([_P], None),
    "sm_point_network": ([_P], None),
    "sm_module": ([_P], None),
}
_serving: tuple[ctypes.CDLL, build.Form] | None = None
_lock = threading.Lock()


def lib() -> ctypes.CDLL:
    """The library that serves, built on first use; $SPARSEMASK_VECTOR_WIDTH may choose another than the fastest."""
    return (_serving or _start())[0]


def form() -> build.Form:
    """What the library that serves was compiled as."""
    return (_serving or _start())[1]


def _start() -> tuple[ctypes.CDLL, build.Form]:
    global _serving
    with _lock:
        if _serving is None:
            _serving = _chosen()
        return _serving


def _chosen() -> tuple[ctypes.CDLL, build.Form]:
    """The library for this processor, or the one that the environment asks for, which is said in a line."""
    asked, sanitized = build.asked_width(), build.is_sanitized()
    if asked is None and not sanitized:
        return _loaded(build.Form()), build.Form()
    width, instruction_set = asked or (supported_width(), None)
    known = supported()
    if instruction_set is None:
        fitting = [name for name in known if build.INSTRUCTION_SETS[name][0] == width]
        instruction_set = (fitting or known)[-1]
    if instruction_set not in known:
        raise UseError(f"{build.VARIABLE}: this processor has no {instruction_set}; it has {', '.join(known)}")
    natural = build.INSTRUCTION_SETS[instruction_set][0] == width
    chosen = build.Form() if natural and not sanitized else build.Form(width, instruction_set, sanitized)
    loaded = _loaded(chosen)
    loaded.sm_width(width)
    line = f"sparse kernels: vectors of {width} floats, compiled for {instruction_set}"
    print(line + " with sanitizers" * sanitized, file=sys.stderr, flush=True)
    return loaded, chosen


def _loaded(wanted: build.Form) -> ctypes.CDLL:
    loaded = build.library(wanted)
    for name, (arguments, answer) in _ENTRIES.items():
        function = getattr(loaded, name)  # which keeps what ctypes finds under the name
        function.argtypes, function.restype = arguments, answer
    loaded.sm_keep_memory()
    _ = loaded.sm_tiles(2, 1) or loaded.sm_tiles(2, 3)  # the processor's matrix tiles, else its dot products, else none
    loaded.sm_tiles(1, 5)
    return loaded


@lru_cache(maxsize=1)
def supported() -> tuple[str, ...]:
    """The instruction sets of this processor that kernels are compiled for, the plainest first."""
    widest = supported_width()
    known = build.instruction_sets(platform.machine())
    return tuple(name for name in known if build.INSTRUCTION_SETS[name][0] <= widest)


@lru_cache(maxsize=1)
def supported_width() -> int:
    """Floats of this processor's widest vectors."""
    return _loaded(build.Form()).sm_width(16)


@contextlib.contextmanager
def using(wanted: build.Form) -> Iterator[ctypes.CDLL]:
    """Within the `with`, the library of another form serves all threads of this process."""
    with serving(_loaded(wanted), wanted) as loaded:
        yield loaded


@contextlib.contextmanager
def serving(loaded: ctypes.CDLL, compiled: build.Form) -> Iterator[ctypes.CDLL]:
    """The same of one that :func:`using` gave, without a look at its file."""
    global _serving
    before = _serving or _start()
    _serving = loaded, compiled
    try:
        yield loaded
    finally:
        _serving = before


def width() -> int:
    """Floats of the vectors in use."""
    return lib().sm_width(0)


def group_of(columns: int, *lengths: int) -> int:
    """Steps of the depth that a product takes at a time, where segments have these lengths; 0: one by one.

    Vectors hold 8 columns in pairs of steps, or 4 in fours of them, so that few columns fill them, and what is read of
    a row serves several vectors.
    """
    groups = (4, 2) if columns <= 12 else (2,) if columns <= 24 else ()
    return next((group for group in groups if all(n % group == 0 for n in lengths)), 0)


def pack(weights: Tensor, group: int = 0) -> Tensor:
    """Weights (depth, columns) float32 in the order the kernels read them; group: see :func:`group_of`."""
    weights = weights.to(torch.float32).contiguous()
    depth, columns = weights.shape
    if group:
        each = 16 // group
        packed = torch.empty(depth * -(-columns // each) * each)
        lib().sm_pack_groups(weights.data_ptr(), depth, columns, group, packed.data_ptr())
        return packed
    rest = columns % 16
    packed = torch.empty(depth * (columns - rest + (0 if not rest else 8 if rest <= 8 else 16)))
    lib().sm_pack(weights.data_ptr(), depth, columns, packed.data_ptr())
    return packed


def empty(rows: int, columns: int) -> Tensor:
    """Uninitialised float32 (rows, columns), on large pages where it is large and the system has them."""
    buffer = torch.empty(rows, columns)
    if buffer.numel() >= LARGE:
        lib().sm_advise(buffer.data_ptr(), 4 * buffer.numel())
    return buffer


def pack_narrow(weights: Tensor) -> Tensor:
    """Weights (segments, length, columns) float32 in the order inner products read them; length a multiple of 8."""
    parts, first = [], 0
    while first < weights.shape[2]:
        left = weights.shape[2] - first
        taken = 6 if 4 < left < 7 else 4 if left > 2 else left  # as narrow.h takes them
        part = weights[..., first : first + taken].transpose(1, 2)
        parts.append(F.pad(part, (0, 0, 0, taken - part.shape[1])).flatten())
        first += taken
    return torch.cat(parts).to(torch.float32)


def split(mask: Tensor, compact: bool = True) -> tuple[Tensor, Tensor, Tensor | None]:
    """(kept, dropped, compact) of a mask bool (n,): indices of both; if asked for, each entry's place among the kept,
    or -1."""
    n = mask.numel()
    kept, dropped = (torch.empty(n + 8, dtype=torch.int32) for _ in range(2))
    places = torch.empty(n, dtype=torch.int32) if compact else None
    at = places.data_ptr() if compact else None
    count = lib().sm_split(mask.data_ptr(), n, kept.data_ptr(), dropped.data_ptr(), at)
    return kept[:count], dropped[: n - count], places


def partition(listed: Tensor, kind: Tensor, kinds: int, position: Tensor) -> list[tuple[Tensor, Tensor]]:
    """For every kind (values, pos): the entries v of `listed` (n,) int32 that have kind[v], and their position[v]."""
    starts = torch.empty(kinds + 1, dtype=torch.int64)
    values, pos = torch.empty_like(listed), torch.empty_like(listed)
    lib().sm_partition(
        listed.data_ptr(), len(listed), kind.data_ptr(), kinds, position.data_ptr(), starts.data_ptr(),
        values.data_ptr(), pos.data_ptr(),
    )  # fmt: skip
    return [(values[a:b], pos[a:b]) for a, b in itertools.pairwise(starts.tolist())]


TAPS_OF_SQUARES = 9  # of a kernel's 3×3 layers
# G of F(2x2, 3x3), see src/squares.h.
_FILTER = torch.tensor([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], dtype=torch.float64)


def in_squares(depth: int, columns: int) -> bool:
    """Whether so many channels are computed by squares faster than output by output."""
    return min(depth, columns) >= LEAST


def pack_squares(taps: Tensor) -> Tensor:
    """Weights (9 L, depth, columns) of kernels (L, 3, 3) as products of squares read them (src/squares.h), float32."""
    depth, columns = taps.shape[1:]
    lines = taps.double().reshape(-1, 3, 3, depth, columns)
    transformed = torch.einsum("ua,vb,labdc->uvldc", _FILTER, _FILTER, lines).flatten(2, 3).flatten(0, 1)
    return torch.cat([pack(one) for one in transformed])


def squares(pos: Tensor, pitch: int) -> tuple[Tensor, Tensor]:
    """Which of the outputs at `pos` (n,) int32, which rise, are squares of 2×2; lines are `pitch` positions apart.

    Returns:
        The outputs of squares (squares, 4) int32, upper ones first, and those that are in none (rest,) int32.
    """
    found, rest = torch.empty(2, len(pos), dtype=torch.int32)
    count = lib().sm_squares(pos.data_ptr(), len(pos), pitch, found.data_ptr(), rest.data_ptr())
    return found[: 4 * count].view(-1, 4), rest[: len(pos) - 4 * count]


def lookup(index: Tensor, values: Tensor) -> Tensor:
    """values[index] where index >= 0, else -1; int32."""
    out = torch.empty_like(index)
    lib().sm_lookup(index.data_ptr(), index.numel(), values.data_ptr(), out.data_ptr())
    return out


def narrow(rows: Tensor, places: Tensor) -> Tensor:
    """The columns `places` (k,) int32 of rows (R, C), contiguous."""
    out, threads = empty(len(rows), len(places)), torch.get_num_threads()
    lib().sm_narrow(rows.data_ptr(), rows.stride(0), len(rows), places.data_ptr(), len(places), out.data_ptr(), threads)
    return out


def fill(out: Tensor, at: Tensor, values: Tensor | None = None, places: Tensor | None = None) -> None:
    """Zero the rows `at` (n,) int32 of out (R, C), and put those of values (R, k) into their columns `places` (k,)."""
    if not out.shape[1]:
        return  # which has no address
    lib().sm_fill(
        out.data_ptr(),
        out.stride(0),
        out.shape[1],
        at.data_ptr(),
        len(at),
        values.data_ptr() if values is not None else None,
        places.data_ptr() if places is not None else None,
        len(places) if places is not None else 0,
        torch.get_num_threads(),
    )


def add_relu(a: Tensor, b: Tensor, mask: Tensor | None = None, dense: int = 0) -> Tensor:
    """relu(a + b) in place of a; both (R, C) float32, contiguous.

    mask bool (R,): the rows it drops keep their first `dense` columns and are else zero.
    """
    lib().sm_add_relu(
        a.data_ptr(), b.data_ptr(), *a.shape, mask.data_ptr() if mask is not None else None, dense,
        torch.get_num_threads(),
    )  # fmt: skip
    return a


def product(*given, depthwise: bool = False, **more) -> None:
    """Write act(rows · weights + bias + add) for some output rows; see :class:`Call` for what it takes."""
    call = Call(*given, **more)  # held until it is done: it owns what it points to
    if call.args.rows:
        (lib().sm_depthwise if depthwise else lib().sm_product)(ctypes.addressof(call.args))


def products(calls: Sequence[Call]) -> None:
    """Several calls, none of which reads what another writes, in one go; without `sums`."""
    calls = [call for call in calls if call.args.rows]
    if calls:
        listed = (_Product * len(calls))(*(call.args for call in calls))
        lib().sm_products(ctypes.addressof(listed), len(calls))


class Call:
    """A product over the output rows at `pos` (n,) int32, which rise: act(rows · weights + bias + add).

    The first `out.rows.shape[1]` columns go to `out`, what is left to `rest`. add: (R, columns), read at the rows that
    `out` is written at, or at those that add_map (R,) int32 says of them. sums: (threads, columns) float64, to which
    the outputs are added. narrow: `packed` is :func:`pack_narrow`'s; outputs go to the columns `places` (columns,)
    int32, or the first ones, and of the columns before `clear` the others are zeroed then. slopes: (columns,) float32,
    of the leaky ReLU of each column. group: as `packed` has it. pitch: rows are squares, `pos` is of their upper left
    outputs, `out.at` (4n,) of all; see src/problem.h.
    """

    def __init__(
        self,
        pos: Tensor,
        segments: Sequence[Segment] | Taps,
        packed: Tensor,
        columns: int,
        out: Target,
        rest: Target | None = None,
        *,
        bias: Tensor | None = None,
        activation: tuple[int, float] = (0, 0.0),
        add: Tensor | None = None,
        add_map: Tensor | None = None,
        sums: Tensor | None = None,
        narrow: bool = False,
        clear: int = 0,
        places: Tensor | None = None,
        slopes: Tensor | None = None,
        group: int = 0,
        pitch: int = 0,
    ):
        # As the struct lies: base, map, stride, offset, length.
        if isinstance(segments, Taps):
            listed, near = segments.numbers(), segments.rows.numel() < NEAR
        else:
            listed, near = np.array([one.numbers() for one in segments], np.int64).reshape(-1, 5), True
        self.args = args = _Product(
            rows=len(pos),
            pos=pos.data_ptr(),
            n_segments=len(listed),
            segments=listed.ctypes.data,
            depth=int(listed[:, 4].sum()),
            columns=columns,
            packed=packed.data_ptr(),
            bias=bias.data_ptr() if bias is not None else None,
            activation=activation[0],
            slope=activation[1],
            split=min(columns, out.rows.shape[1]),
            out0=out.rows.data_ptr(),
            at0=out.at.data_ptr() if out.at is not None else None,
            stride0=out.rows.stride(0),
            threads=torch.get_num_threads(),
            narrow=int(narrow) * (1 if near else 2),
            clear=clear,
            places=places.data_ptr() if places is not None else None,
            slopes=slopes.data_ptr() if slopes is not None else None,
            group=group,
            pitch=pitch,
        )
        if rest is not None:
            args.out1, args.stride1 = rest.rows.data_ptr(), rest.rows.stride(0)
            args.at1 = rest.at.data_ptr() if rest.at is not None else None
        if add is not None:
            args.add, args.add_stride = add.data_ptr(), add.stride(0)
            args.add_map = add_map.data_ptr() if add_map is not None else None
        if sums is not None:
            args.sums = sums.data_ptr()
        # The addresses above are of these: they live as long as the call does.
        self._held = (listed, pos, segments, packed, out, rest, bias, add, add_map, sums, places, slopes)
