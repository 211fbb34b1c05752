"""Milliseconds of networks and functions, measured so that two values can be compared."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import numpy as np
import torch
from torch import Tensor, nn


class Batch(Protocol):
    """An input of several tensors, such as a crop of a point cloud or a stereo pair."""

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Self:
        """The same on another device."""


Shape = tuple[int, ...]
Inputs = Shape | Tensor | Sequence[Shape | Tensor | Batch]  # one input, or several

NOISE = 0.03
"""Relative error of measured times: networks nearer than that are equally fast."""

_AMPLE, _FEWEST = 5.0, 3  # seconds spent on timing, and repeats taken whatever they last


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
