"""What a backend's call costs on this machine, from a few layers timed once and kept in the cache."""

from __future__ import annotations

import contextlib
import hashlib
import math
import time
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

import torch

from sparsemask.datasets import cache
from sparsemask.devices import processor
from sparsemask.errors import UseError
from sparsemask.files import read_json, write_json
from sparsemask.ops import dispatch
from sparsemask.ops.conv import ConvCall
from sparsemask.ops.geometry import Geometry

_CHANNELS = (4, 16, 64)  # rates are measured at these and interpolated between them
_VERSION = 1


@dataclass(frozen=True)
class Model:
    """seconds = fixed + multiply-adds / rate(channels) + numbers / bandwidth."""

    fixed: float
    rates: tuple[float, ...]  # multiply-adds a second at each of _CHANNELS
    bandwidth: float

    def seconds(self, multiply_adds: float, numbers: float, channels: int) -> float:
        """Predicted time of a call; channels: the lesser of a group's input and output channels."""
        rate = self.rates[-1]
        for low, high, a, b in zip(_CHANNELS, _CHANNELS[1:], self.rates, self.rates[1:], strict=False):
            if channels <= high:
                share = (max(channels, low) - low) / (high - low)
                rate = a + share * (b - a)
                break
        return self.fixed + multiply_adds / rate + numbers / self.bandwidth


def model(name: str, device: torch.device, dtype: torch.dtype) -> Model:
    """The model of a backend; measured now (about a second) where the cache has none."""
    return _model(name, str(device), dtype, torch.get_num_threads())


@lru_cache(maxsize=64)
def _model(name: str, device: str, dtype: torch.dtype, threads: int) -> Model:
    path = _path(name, device, dtype, threads)
    with contextlib.suppress(UseError, OSError, KeyError, TypeError, ValueError, OverflowError):
        if path.exists():
            kept = read_json(path)
            measured = Model(float(kept["fixed"]), tuple(map(float, kept["rates"])), float(kept["bandwidth"]))
            rates = (*measured.rates, measured.bandwidth)
            sound = math.isfinite(measured.fixed) and measured.fixed >= 0 and all(0 < f < math.inf for f in rates)
            if len(measured.rates) == len(_CHANNELS) and sound:
                return measured
    measured = _measure(name, torch.device(device), dtype)
    with contextlib.suppress(OSError):  # a cache that cannot be written costs a second at every start
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, asdict(measured))
    return measured


def _path(name: str, device: str, dtype: torch.dtype, threads: int) -> Path:
    kind = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()
    key = repr((_VERSION, name, kind, str(dtype), threads, torch.__version__))
    return cache() / "costs" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


@torch.no_grad()
def _measure(name: str, device: torch.device, dtype: torch.dtype) -> Model:
    """Time a tiny layer, a layer that mostly moves numbers, and 3×3 layers of several widths."""
    fixed = _time(name, 16, 4, 3, device, dtype)
    size = 128
    moving = 2.0 * 16 * size**2 / max(_time(name, 16, size, 1, device, dtype) - fixed, 1e-7)
    rates = []
    for channels in _CHANNELS:
        size = 64 if channels >= 64 else 96
        spent = _time(name, channels, size, 3, device, dtype) - fixed - 2.0 * channels * size**2 / moving
        rates.append(9.0 * channels**2 * size**2 / max(spent, 1e-7))
    return Model(fixed, tuple(rates), moving)


def _time(name: str, channels: int, size: int, kernel: int, device: torch.device, dtype: torch.dtype) -> float:
    """Seconds of a layer with everything kept and nothing dense, the least of a few."""
    backend = dispatch.find(name)
    x = torch.ones(1, channels, size, size, device=device, dtype=dtype).contiguous(memory_format=torch.channels_last)
    weight = torch.ones(channels, channels, kernel, kernel, device=device, dtype=dtype)
    mask = torch.ones(1, 1, size, size, dtype=torch.bool, device=device)
    none = torch.zeros(channels, dtype=torch.bool, device=device)
    call = ConvCall(x, weight, None, mask, none, none, Geometry.of(2, kernel), "relu")
    best = float("inf")
    for _ in range(5):
        begun = time.perf_counter()
        backend.conv(call)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return best
