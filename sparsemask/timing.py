"""Milliseconds of networks and functions, measured so that two values can be compared."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn

from sparsemask.memory import keep_freed_memory


class Batch(Protocol):
    """An input of several tensors, such as a crop of a point cloud or a stereo pair."""

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """The same on another device."""


Shape = tuple[int, ...]
Inputs = Shape | Tensor | Sequence[Shape | Tensor | Batch]  # one input, or several

NOISE = 0.03
"""Relative error of measured times: networks nearer than that are equally fast."""

BUSY = 1.15
"""Above, what a :class:`Timer` says of the machine means that milliseconds are not exact to a few percent."""

_AMPLE, _FEWEST = 5.0, 3  # seconds spent on timing, and repeats taken whatever they last
_SHORTEST = 4e-4  # seconds; functions that take less are called several times within one measurement
_MOST_CALLS = 64
_LONG_CALL = 0.05  # seconds; functions that take more are warm after one call
_LONG_ENOUGH = 30.0  # seconds; a machine's speed drifts by some percent within less

Functions = Mapping[Hashable, Callable[[], object]]


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one call over `repeats` calls: the median and the quartiles around it."""

    median: float
    low: float
    high: float
    fastest: float
    """On a busy machine nearer to the truth than the median."""
    repeats: int

    @property
    def spread(self) -> float:
        """Interquartile range, in milliseconds."""
        return self.high - self.low


def milliseconds(
    net: nn.Module | Callable,
    inputs: Inputs = (),
    repeats: int = 50,
    warmup: int = 3,
    device: torch.device | str | None = None,
    budget: float = _AMPLE,
) -> Timing:
    """Time calls of a network (in evaluation mode, without gradients) or of any function.

    Args:
        net: what is called.
        inputs: a shape (filled with fixed noise), a tensor, or a sequence of these and of batches; () for no arguments.
        repeats: calls timed at most.
        warmup: calls before, not timed.
        device: default, the network's own; on a GPU the device's clock is read, after it has caught up.
        budget: seconds after which no further call is timed, once there are three.
    """
    device = device_of(net, device, inputs)
    times: list[float] = []
    with evaluating(net):
        arguments = make_inputs(inputs, device, dtype_of(net))
        for _ in range(warmup):
            net(*arguments)
        end = time.perf_counter() + budget
        while len(times) < max(repeats, 1) and (len(times) < _FEWEST or time.perf_counter() < end):
            times.append(_once(lambda: net(*arguments), device))
    low, high = np.percentile(times, (25, 75)).tolist()
    return Timing(statistics.median(times), low, high, min(times), len(times))


def compare(
    callables: Mapping[str, Callable[[], object]],
    rounds: int = 20,
    warmup: int = 2,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Median milliseconds of functions that are called in turn (A B A B …), so that drift affects all alike.

    Args:
        callables: functions by name.
        rounds: timed calls of each.
        warmup: calls of each before, not timed.
        device: on a GPU the device's clock is read.

    Returns:
        Median milliseconds by name.
    """
    device = torch.device(device)
    times: dict[str, list[float]] = {name: [] for name in callables}
    with torch.no_grad():
        for number in range(warmup + rounds):
            for name, function in callables.items():
                elapsed = _once(function, device)
                if number >= warmup:
                    times[name].append(elapsed)
    return {name: statistics.median(values) for name, values in times.items()}


class Timer(Protocol):
    """Times functions in turn."""

    def __call__(self, functions: Functions, rounds: int) -> tuple[dict[Hashable, float], float]:
        """Time every function.

        Args:
            functions: by keys of any kind.
            rounds: measurements of each at least; up to four times as many where they are short.

        Returns:
            Milliseconds by key, and how busy the machine is: 1 where nothing disturbs, 2 where everything took twice
            its time.
        """


def busy_note(busy: float) -> str:
    """What is said of times on a machine that was so busy, see :class:`Timer`."""
    return f"the machine was busy ({busy:.1f} times the time that the work takes): milliseconds are not exact"


@contextlib.contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Inside, torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timer(device: torch.device, threads: int, seconds: float = _LONG_ENOUGH, warm: bool = False) -> Timer:
    """A timer for functions that run on a device with a number of threads; freed memory is kept, as networks do.

    Everything is timed in turn, in several rounds, so that a disturbance meets all alike, and of each the lower
    quartile counts, on a busy machine the least. With one thread on a CPU it is the thread's processor time: other
    processes change it by what they take of caches and memory, not by their time.

    Args:
        device: where the functions run.
        threads: of torch, while they are timed.
        seconds: after which no further round begins, once there are enough.
        warm: call each function once, not timed, before each of its measurements, so that caches hold what it uses, as
            in a program that runs one network again and again. Otherwise the caches hold what ran before it, as they
            do for a part of a network.
    """
    keep_freed_memory()

    def time_all(functions: Functions, rounds: int) -> tuple[dict[Hashable, float], float]:
        with thread_count(threads), torch.inference_mode():
            calls = {key: _calls(function, device) for key, function in functions.items()}
            taken: dict[Hashable, list[tuple[float, float]]] = {key: [] for key in functions}
            begun = time.perf_counter()
            for number in range(4 * rounds):
                if number >= rounds and time.perf_counter() - begun > seconds:
                    break
                for key, function in functions.items():
                    if warm:
                        _measured(function, 1, device)
                    taken[key].append(_measured(function, calls[key], device))
        wall, processor = np.moveaxis(np.array(list(taken.values())), 2, 0)
        own = device.type == "cpu" and threads == 1
        busy = (
            wall.sum() / max(processor.sum(), 1e-9) if own else np.median(wall, 1).sum() / max(wall.min(1).sum(), 1e-9)
        )
        kept = np.percentile(processor if own else wall, 0 if busy > BUSY else 25, axis=1)
        return dict(zip(taken, (kept * 1e3).tolist(), strict=True)), float(busy)

    return time_all


def _calls(function: Callable[[], object], device: torch.device) -> int:
    """How often a function is called within one measurement, after warming it up."""
    if _measured(function, 1, device)[0] > _LONG_CALL:
        return 1
    _measured(function, 1, device)
    return int(np.clip(_SHORTEST / max(_measured(function, 1, device)[0], 1e-7), 1, _MOST_CALLS))


def _measured(function: Callable[[], object], calls: int, device: torch.device) -> tuple[float, float]:
    """Seconds of one call: on the clock, and of this thread's processor time."""
    wall, processor = time.perf_counter(), time.thread_time()
    for _ in range(calls):
        function()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    processor = time.thread_time() - processor
    return (time.perf_counter() - wall) / calls, processor / calls


def make_inputs(
    inputs: Inputs, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> list[Tensor | Batch]:
    """Inputs of a network from a description.

    Args:
        inputs: a shape, which is filled with fixed noise, a tensor, or a sequence of these and of batches.
        device: where the inputs go.
        dtype: of the noise; None: float32.

    Returns:
        The inputs, in order.
    """
    if isinstance(inputs, Tensor) or (len(inputs) and all(isinstance(size, int) for size in inputs)):
        inputs = [inputs]
    generator = torch.Generator().manual_seed(0)
    tensors = []
    for item in inputs:
        if isinstance(item, Sequence):
            item = torch.randn(*item, generator=generator, dtype=torch.float32).to(dtype or torch.float32)
        tensors.append(item.to(device))
    return tensors


@contextlib.contextmanager
def evaluating(net: object) -> Iterator[None]:
    """Inside, evaluation mode without gradients; afterwards every submodule has its former mode."""
    modules = list(net.modules()) if isinstance(net, nn.Module) else []
    modes = [module.training for module in modules]
    if modules:
        net.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in zip(modules, modes, strict=True):
            module.training = training


def device_of(net: object, device: torch.device | str | None, inputs: Inputs = ()) -> torch.device:
    """The device named, else the network's, else that of a tensor among the inputs, else the CPU."""
    if device is not None:
        return torch.device(device)
    parameters = net.parameters() if isinstance(net, nn.Module) else ()
    tensors = [inputs] if isinstance(inputs, Tensor) else [item for item in inputs if isinstance(item, Tensor)]
    return next((tensor.device for tensor in (*parameters, *tensors)), torch.device("cpu"))


def dtype_of(net: object) -> torch.dtype | None:
    """The type of the network's first floating-point parameter."""
    parameters = net.parameters() if isinstance(net, nn.Module) else ()
    return next((p.dtype for p in parameters if p.is_floating_point()), None)


def _once(function: Callable[[], object], device: torch.device) -> float:
    """Milliseconds of one call."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        with torch.cuda.device(device):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            function()
            end.record()
            end.synchronize()
        return start.elapsed_time(end)
    wait = (lambda: None) if device.type == "cpu" else (lambda: torch.accelerator.synchronize(device))
    wait()
    begun = time.perf_counter()
    function()
    wait()
    return (time.perf_counter() - begun) * 1e3
