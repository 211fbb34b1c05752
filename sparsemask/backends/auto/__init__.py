"""Choose a backend for every call, by trying on the first calls of each configuration (layer, size, share of kept
locations); from then on the fastest serves.

Where native kernels are to be had two are tried: `native`, which skips, and `dense`, so that nothing sparse stays in
use where it does not pay. Elsewhere those are tried that a cost model puts near the best one. It says what a backend's
call costs in seconds: a fixed part, one for every executed multiply-add and one for every number moved, measured once a
machine and kept in the cache. With one thread a call's time is the thread's processor time, which other processes do
not stretch. Which backend serves may differ from run
to run, and with it the last bits of the result. Inside :func:`sparsemask.sparse.repeatable`, where networks are
trained, scored and asked for results, nothing is timed: the choice follows from device and type alone.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from sparsemask.backends import Backend
from sparsemask.backends.auto.calibration import Model, model
from sparsemask.backends.native import say_absent
from sparsemask.ops import dispatch
from sparsemask.ops.block import BlockCall
from sparsemask.ops.block_with_channel_attention import AttendedBlockCall
from sparsemask.ops.conv import ConvCall
from sparsemask.ops.inverted_residual import InvertedResidualCall

NEAR = 2.0  # tried if predicted to take at most this many times the best one's time
TRIALS = 6  # calls of each near backend, the first of which only warms up
BEHIND = 1.5  # out of the race after two calls if slower than the best by this
MARGIN = 1.03  # the dense form serves unless another is faster by this much
_DENSE = ("dense", "reference")
_MOST = 4096  # configurations remembered


class Auto(Backend):
    """The backend `auto`. Operators that only `native` has kernels of do not come here: for them "auto" means it."""

    name = "auto"

    def __init__(self):
        self._seen: OrderedDict[tuple, _Race] = OrderedDict()
        self._lock = threading.Lock()

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """None: there is always one that can."""
        return None

    def conv(self, call: ConvCall) -> Tensor:
        """One sparse mask convolution by the backend of choice."""
        x, mask, in_dense, out_dense, geometry = call.x, call.mask, call.in_dense, call.out_dense, call.geometry
        kept = _share(mask)
        dense = (_count(in_dense), _count(out_dense))
        key = ("conv", _form(x, call.weight), geometry, *dense, call.activation, _bucket(kept))
        ins, outs = (len(in_dense), dense[0]), (len(out_dense), dense[1])
        work = lambda: [_Work.of(mask.numel(), kept, _taps(geometry), ins, outs, geometry.groups)]
        return self._serve(key, x, work, call.served_by)

    def block(self, call: BlockCall) -> Tensor:
        """A module by the backend of choice."""
        return self._serve(*_module("block", call), call.served_by)

    def attended_block(self, call: AttendedBlockCall) -> Tensor:
        """A module with its attention by the backend of choice."""
        return self._serve(*_module("attended", call.block), call.served_by)

    def inverted_residual(self, call: InvertedResidualCall) -> Tensor:
        """An inverted residual by the backend of choice."""
        whole = call.mask is None
        kept = 1.0 if whole else _share(call.mask)
        middle = (len(call.depthwise), _count(call.depthwise_dense))
        first = None if call.expand is None else (len(call.expand), _count(call.expand_dense))
        last = (len(call.project), _count(call.project_dense))
        form, bucket = _form(call.x, call.project), whole or _bucket(kept)
        key = ("inverted", form, call.stride, call.shortcut, first, middle[1], last[1], bucket)
        return self._serve(key, call.x, None, call.served_by)

    def race(self, key: tuple, x: Tensor, call: Callable):
        """What call(backend) returns of x, by whichever of the native kernels and torch's own has proved the faster."""
        return self._serve(key, x, None, call)

    def _serve(self, key: tuple, x: Tensor, work: Callable[[], list[_Work]] | None, call: Callable) -> Tensor:
        if dispatch.repeating():
            reason = dispatch.find("native").why_not(x.device, x.dtype)
            self._tell(x, {"native": reason})
            return call(dispatch.find("reference" if reason else "native"))
        key = (key, x.device, x.dtype, torch.get_num_threads())
        race = self._seen.get(key)
        if race is not None and race.winner is not None:
            return call(dispatch.find(race.winner))
        with self._lock:
            race = self._seen.get(key)
            if race is None:
                race = self._seen[key] = _Race(self._near(x, work))
                while len(self._seen) > _MOST:
                    self._seen.popitem(last=False)
        chosen = race.next()
        backend = dispatch.find(chosen)
        if race.over:
            return call(backend)
        alone = x.device.type == "cpu" and torch.get_num_threads() == 1
        clock = time.thread_time if alone else time.perf_counter
        begun = clock()
        out = call(backend)
        if x.device.type != "cpu":
            torch.accelerator.synchronize(x.device)
        race.record(chosen, clock() - begun)
        return out

    def _near(self, x: Tensor, work: Callable[[], list[_Work]] | None) -> list[str]:
        """Backends worth trying, the one predicted to be fastest first; without a prediction all that have the form."""
        able = {n: dispatch.find(n).why_not(x.device, x.dtype) for n in dispatch.shipped() if n != self.name}
        self._tell(x, able)
        if work is None:
            return [n for n in ("native", "reference") if able[n] is None]
        if able["native"] is None and able["dense"] is None:
            return ["native", "dense"]
        costs, work = {}, work()
        for name, reason in able.items():
            if reason is None:
                known: Model = model(name, x.device, x.dtype)
                costs[name] = sum(known.seconds(*(one.dense if name in _DENSE else one.sparse)) for one in work)
        best = min(costs.values())
        return sorted((n for n in costs if costs[n] <= NEAR * best), key=costs.get)

    def _tell(self, x: Tensor, able: dict[str, str | None]) -> None:
        if x.device.type == "cpu" and x.dtype == torch.float32 and able["native"]:
            say_absent(able["native"])

    def forget(self) -> None:
        """Forget every choice made so far."""
        with self._lock:
            self._seen.clear()

    def choices(self) -> dict[tuple, str]:
        """The choice for every configuration met so far, as far as it is made."""
        with self._lock:
            return {key: race.next() for key, race in self._seen.items() if race.over}


class _Race:
    """Takes turns among backends until the fastest is known; those that fall far behind leave early."""

    def __init__(self, names: list[str]):
        self.times: dict[str, list[float]] = {name: [] for name in names}
        self.winner = names[0] if len(names) == 1 else None

    @property
    def over(self) -> bool:
        return self.winner is not None

    def next(self) -> str:
        """Whose turn it is: the least tried, in the order of the prediction."""
        return self.winner or min(self.times, key=lambda n: len(self.times[n]))

    def record(self, name: str, seconds: float) -> None:
        times = self.times  # another thread may replace it meanwhile
        if name not in times:
            return
        times[name].append(seconds)
        counts = [len(t) for t in times.values()]
        if min(counts) < 2:
            return
        cost = {n: min(t[1:]) * (1.0 if n in _DENSE else MARGIN) for n, t in times.items()}
        best = min(cost, key=cost.get)
        if min(counts) >= TRIALS:
            self.winner = best
            return
        self.times = {n: t for n, t in times.items() if cost[n] <= BEHIND * cost[best]}
        if len(self.times) == 1:
            self.winner = best


class _Work:
    """(multiply-adds, numbers moved) of a layer in its dense and in its sparse form."""

    def __init__(self, dense: tuple[float, float, int], sparse: tuple[float, float, int]):
        self.dense, self.sparse = dense, sparse

    @classmethod
    def of(
        cls, outputs: int, kept: float, taps: float, ins: tuple[int, int], outs: tuple[int, int], groups: int = 1
    ) -> _Work:
        """taps: read by an output. ins, outs: (channels, dense ones among them)."""
        full, part = taps * ins[0] * outs[0] / groups, taps * ins[1] * outs[1] / groups
        again = part if outs[1] and ins[1] < ins[0] else 0.0
        moved, narrow = outputs * (ins[0] + outs[0]), min(ins[0], outs[0]) // groups
        sparse = outputs * (kept * full + (1 - kept) * part)
        return cls((outputs * (full + again), moved, narrow), (sparse, moved * (0.3 + 0.7 * kept), narrow))


def _module(kind: str, call: BlockCall) -> tuple[tuple, Tensor, Callable[[], list[_Work]]]:
    """A module's configuration, input and work."""
    x, mask, weights, dense = call.x, call.mask, call.weights, call.dense
    kept, counts = _share(mask), dense.sum(1).tolist()
    key = (kind, _form(x, weights[0]), len(weights), tuple(counts), _bucket(kept))

    def work() -> list[_Work]:
        layers, before = [], (x.shape[1], x.shape[1])
        for weight, count in zip(weights, counts, strict=True):
            mine = (weight.shape[0], count)
            layers.append(_Work.of(mask.numel(), kept, weight[0, 0].numel(), before, mine))
            before = mine
        channels = call.collect_weight.shape[0]
        return [*layers, _Work.of(mask.numel(), kept, 1, (dense.numel(), sum(counts)), (channels, channels))]

    return key, x, work


def _taps(geometry) -> float:
    """Taps that an output reads, on average."""
    taps = math.prod(geometry.kernel)
    return taps / math.prod(geometry.stride) if geometry.transposed else taps


def _count(flags: Tensor) -> int:
    """How many are true; by NumPy on a CPU, whose overhead is the smaller one."""
    return int(np.count_nonzero(flags.numpy())) if flags.device.type == "cpu" else int(flags.sum())


def _share(mask: Tensor) -> float:
    return _count(mask) / max(mask.numel(), 1)


def _bucket(kept: float) -> int:
    return round(kept * 16)


def _form(x: Tensor, weight: Tensor) -> tuple:
    return (x.shape, weight.shape, x.is_contiguous())


BACKEND = Auto()
