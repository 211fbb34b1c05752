"""Calls of the native kernels as files, to be replayed by tests/replay.cpp on a processor that Python is not on.

A file holds int64 numbers and bytes after their count: the number of calls; for each its entry's name, the memory it
can reach as it was before the call, the addresses in that memory (memory, place, memory pointed to, offset in it), and
its arguments (memory or -1, offset or number). A replay answers with each call's result and all its memory.
"""

from __future__ import annotations

import ctypes
import gc
import struct
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sparsemask.backends.native import block, inverted_residual, library, multiscale_sum, points, predict_mask

_WORDS = 8
_SEGMENT = (5, 2)  # words of a segment, and how many of them, at its beginning, are addresses
_SCALE = (9, 3)
_STRUCTS = {
    "sm_product": library._Product,
    "sm_products": library._Product,
    "sm_depthwise": library._Product,
    "sm_points": points._Points,
    "sm_point_bins": points._PointBins,
    "sm_point_gradients": points._PointGrads,
    "sm_scales": multiscale_sum._Scales,
    "sm_inverted": inverted_residual._Inverted,
    "sm_locate": predict_mask._Locate,
    "sm_module": block._Module,
}
SILENT = ("sm_width", "sm_advise", "sm_keep_memory", "sm_version")  # they compute nothing


@dataclass
class Memory:
    """A stretch of memory: where it begins, what it held before and after a call, and as which type it is compared."""

    start: int
    before: bytes
    kind: np.dtype
    after: bytes = b""


@dataclass
class Recorded:
    """One call."""

    name: str
    memory: list[Memory]
    addresses: list[tuple[int, int, int, int]]
    arguments: list[tuple[int, int]]
    answer: int | None = None

    def pack(self) -> bytes:
        numbers = lambda *values: struct.pack(f"<{len(values)}q", *values)
        blob = lambda content: numbers(len(content)) + content
        parts = [blob(self.name.encode()), numbers(len(self.memory)), *(blob(one.before) for one in self.memory)]
        parts += [numbers(len(self.addresses)), *(numbers(*one) for one in self.addresses)]
        parts += [numbers(len(self.arguments)), *(numbers(*one) for one in self.arguments)]
        return b"".join(parts)

    def check(self, answer: int, memory: list[bytes], tolerance: float) -> None:
        """Raise AssertionError where a replay's outcome is another."""
        if self.answer is not None:
            assert answer == self.answer, self.name
        for one, found in zip(self.memory, memory, strict=True):
            pointing = one.kind == np.uint64  # structs, with addresses in them
            if pointing or one.before == one.after == found:
                continue
            got, wanted = np.frombuffer(found, one.kind), np.frombuffer(one.after, one.kind)
            if one.kind.kind == "f":
                np.testing.assert_allclose(got, wanted, rtol=tolerance, atol=tolerance, err_msg=self.name)
            else:
                np.testing.assert_array_equal(got, wanted, err_msg=self.name)


def _tensors() -> list[torch.Tensor]:
    """All that lie in this process's memory and were made since garbage was frozen."""
    # Not those of tracing, which have no memory.
    found = [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
    return [one for one in found if one.layout is torch.strided and one.device.type == "cpu" and _has_memory(one)]


def _has_memory(one: torch.Tensor) -> bool:
    try:
        return one.untyped_storage().data_ptr() >= 0
    except RuntimeError:
        return False


class _Call:
    """What a call can reach, found from its arguments."""

    def __init__(self, name: str, older: list[torch.Tensor]):
        self.said = Recorded(name, [], [], [])
        self.owners = []
        for one in (*older, *_tensors()):
            store = one.untyped_storage()
            self.owners.append((store.data_ptr(), store.nbytes(), one.dtype))

    def place(self, address: int) -> tuple[int, int]:
        """(memory, offset in it) of an address."""
        for number, one in enumerate(self.said.memory):
            if one.start <= address < one.start + len(one.before):
                return number, address - one.start
        for start, size, kind in self.owners:
            if start <= address < start + size:
                kind = torch.empty(0, dtype=torch.uint8 if kind is torch.bool else kind).numpy().dtype
                return self.add(start, size, kind), address - start
        raise LookupError(f"{self.said.name}: nobody owns {address:#x}")

    def add(self, start: int, size: int, kind) -> int:
        self.said.memory.append(Memory(start, ctypes.string_at(start, size), np.dtype(kind)))
        return len(self.said.memory) - 1

    def point(self, where: int, at: int, address: int) -> None:
        if address:
            self.said.addresses.append((where, at, *self.place(address)))

    def structs(self, address: int, kind: type, count: int) -> int:
        """The memory of `count` structs and all that they point to."""
        size = ctypes.sizeof(kind)
        mine = self.add(address, count * size, np.uint64)
        for number in range(count):
            one = kind.from_address(address + number * size)
            if hasattr(one, "segments") and one.n_segments:
                self.listed(one.segments, one.n_segments, *_SEGMENT)
            if hasattr(one, "scales") and one.n:
                self.listed(one.scales, one.n, *_SCALE)
            if kind is block._Module:
                self.structs(one.layers, block._Layer, one.n_layers)
                self.add(one.offsets, _WORDS * one.n_taps, np.int64)
            for name, form in kind._fields_:
                if form is ctypes.c_void_p:
                    self.point(mine, number * size + getattr(kind, name).offset, getattr(one, name) or 0)
        return mine

    def listed(self, address: int, count: int, words: int, addresses: int) -> None:
        """The memory of `count` records of so many words, the first of which are addresses."""
        mine = self.add(address, words * _WORDS * count, np.uint64)
        for number, line in enumerate(np.frombuffer(self.said.memory[mine].before, np.uint64).reshape(-1, words)):
            for column in range(addresses):
                self.point(mine, (words * number + column) * _WORDS, int(line[column]))


class _Function:
    """An entry that notes its calls."""

    def __init__(self, name: str, function, calls: list[Recorded], older: list[torch.Tensor]):
        self.__dict__.update(name=name, function=function, calls=calls, older=older)

    def __setattr__(self, name, value):
        setattr(self.function, name, value)

    def __call__(self, *given):
        if self.name in SILENT:
            return self.function(*given)
        call = _Call(self.name, self.older)
        for value, form in zip(given, self.function.argtypes, strict=True):
            if form is not ctypes.c_void_p:
                call.said.arguments.append((-1, int(value)))
            elif not value:
                call.said.arguments.append((-1, 0))
            elif self.name in _STRUCTS:
                count = given[1] if self.name == "sm_products" else 1
                call.said.arguments.append((call.structs(value, _STRUCTS[self.name], count), 0))
            else:
                call.said.arguments.append(call.place(value))
        call.said.answer = answer = self.function(*given)
        for one in call.said.memory:
            one.after = ctypes.string_at(one.start, len(one.before))
        self.calls.append(call.said)
        return answer


@contextmanager
def recording():
    """Inside, the list it yields takes every call that computes something."""
    found, calls, kept = library.lib(), [], {}

    class Library:
        def __getattr__(self, name):
            return kept.setdefault(name, _Function(name, getattr(found, name), calls, older))

    own, older = library.lib, _tensors()
    gc.freeze()  # what is there already is looked through once
    library.lib = lambda: recorder
    recorder = Library()
    try:
        yield calls
    finally:
        library.lib = own
        gc.unfreeze()


def write(path: Path, calls: list[Recorded]) -> None:
    """Write the calls as they were before they computed."""
    path.write_bytes(struct.pack("<q", len(calls)) + b"".join(one.pack() for one in calls))


def check(path: Path, calls: list[Recorded], tolerance: float) -> None:
    """Compare a replay's answers with what the calls computed here."""
    content, at = path.read_bytes(), 0
    for one in calls:
        (answer,) = struct.unpack_from("<q", content, at)
        at += _WORDS
        memory = []
        for part in one.memory:
            memory.append(content[at : at + len(part.before)])
            at += len(part.before)
        one.check(answer, memory, tolerance)
    assert at == len(content)
