"""Times of the steps of connectivity networks on the machine at hand.

Everything is timed in turn, in several rounds, so that a disturbance meets all alike, and of each the lower quartile
counts, on a busy machine the least. With one thread on a CPU it is the thread's processor time: other processes change
it by what they take of caches and memory, not by their time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.masks import DOWN, UP
from sparsemask.memory import keep_freed_memory
from sparsemask.spaces.connectivity.decoder_steps import CONSTANT, Geometry, Step

Functions = Mapping[Hashable, Callable[[], object]]
_SHORTEST = 4e-4  # seconds; functions that take less are called several times within one measurement
_MOST_CALLS = 64
_LONG_ENOUGH = 30.0  # seconds; a machine's speed drifts by some percent within less
BUSY = 1.15
"""Above, what a :class:`Timer` says of the machine means that milliseconds are not exact to a few percent."""
WIDTHS = (8, 16, 24, 32, 48, 64)
"""Widths of stages at which steps are measured, beside the depth of the published space."""


class Lazy:
    """A function that is made when it is first called, so that what nobody calls costs nothing."""

    def __init__(self, make: Callable[[], Callable[[], object]]):
        self._make, self._function = make, None

    def __call__(self) -> object:
        if self._function is None:
            self._function = self._make()
        return self._function()


class Timer(Protocol):
    """Times functions in turn."""

    def __call__(self, functions: Functions, rounds: int) -> tuple[dict[Hashable, float], float]:
        """Time every function.

        Args:
            functions: by keys, which are steps or decoders.
            rounds: measurements of each at least; up to four times as many where they are short.

        Returns:
            Milliseconds by key, and how busy the machine is: 1 where nothing disturbs, 2 where everything took twice
            its time.
        """


@contextlib.contextmanager
def thread_count(threads: int) -> Iterator[None]:
    """Inside, torch computes with so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def timer(device: torch.device, threads: int) -> Timer:
    """A timer for functions that run on a device with a number of threads; freed memory is kept, as networks do."""
    keep_freed_memory()

    def time_all(functions: Functions, rounds: int) -> tuple[dict[Hashable, float], float]:
        with thread_count(threads), torch.inference_mode():
            calls = {key: _calls(function, device) for key, function in functions.items()}
            taken: dict[Hashable, list[tuple[float, float]]] = {key: [] for key in functions}
            begun = time.perf_counter()
            for number in range(4 * rounds):
                if number >= rounds and time.perf_counter() - begun > _LONG_ENOUGH:
                    break
                for key, function in functions.items():
                    taken[key].append(_measured(function, calls[key], device))
        wall, processor = np.moveaxis(np.array(list(taken.values())), 2, 0)
        own = device.type == "cpu" and threads == 1
        busy = (
            wall.sum() / max(processor.sum(), 1e-9) if own else np.median(wall, 1).sum() / max(wall.min(1).sum(), 1e-9)
        )
        seconds = np.percentile(processor if own else wall, 0 if busy > BUSY else 25, axis=1)
        return dict(zip(taken, (seconds * 1e3).tolist(), strict=True)), float(busy)

    return time_all


def _calls(function: Callable[[], object], device: torch.device) -> int:
    """How often a function is called within one measurement, after warming it up."""
    _measured(function, 2, device)
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


def steps_to_measure(geometry: Geometry) -> list[Step]:
    """The grid of steps from which those of every decoder can be interpolated."""
    widths = sorted({*WIDTHS, geometry.depth})
    steps = [Step("mean", geometry.sizes[0], geometry.channels[0]), Step("relu6", CONSTANT, geometry.channels[0])]
    steps += [Step("relu6", size, c) for size, c in zip(geometry.sizes, geometry.channels, strict=True)]
    for j in range(len(geometry)):
        for kind in (DOWN, UP):
            size = geometry.source_size(kind, j)
            inputs = widths[1:] if kind == UP and j else [geometry.channels[j]]
            for width in _joint_widths(geometry, len(geometry) - j):
                steps += [Step("conv", (*size, c), width) for c in inputs]
    for size in dict.fromkeys(geometry.sizes):
        for width in widths:
            steps += [Step(kind, size, width) for kind in ("add", "add_part", "finish", "separable", "full", "context")]
            steps.append(Step("head", (*size, geometry.n_class), width))
        for target in dict.fromkeys(geometry.sizes):
            if target != size and target[0] * target[1] >= size[0] * size[1]:
                pairs = [(kind, w) for kind in ("resize", "resize_part") for w in widths if w >= 16 or w == widths[0]]
                steps += [Step(kind, (*size, *target), width) for kind, width in pairs]
    return list(dict.fromkeys(steps))


def _joint_widths(geometry: Geometry, takers: int) -> list[int]:
    """Output channels of a joint product to measure: those of 1, 2, ... takers, and of narrow ones."""
    most = takers * max(geometry.depth, WIDTHS[-1])
    widths = {*WIDTHS, 40, most - 8, *(geometry.depth * n for n in (1, 2, 3, 5, takers) if n <= takers)}
    return sorted({w for w in widths if 8 <= w <= most or w == geometry.depth})


class Workbench:
    """Makes the function of a step: the call that the network makes, on tensors of that shape.

    Args:
        geometry: shapes of the network.
        device: where the tensors are.
        channels_last: their memory format.
    """

    def __init__(self, geometry: Geometry, device: torch.device, channels_last: bool):
        self.geometry, self.device = geometry, device
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._tensors: dict[tuple[int, ...], Tensor] = {}

    def lazy(self, step: Step) -> Lazy:
        """The function of a step, made when it is first called."""

        def make() -> Callable[[], object]:
            with torch.random.fork_rng(devices=[]):
                return self.function(step)

        return Lazy(make)

    def function(self, step: Step) -> Callable[[], object]:
        """The function of a step other than the encoder's."""
        height, width, channels = *step.site[:2], step.width
        if step.kind == "conv":
            return self._call(self._conv(step.site[2], channels), self._tensor(height, width, step.site[2]))
        if step.kind == "head":
            return self._call(self._conv(channels, step.site[2]), self._tensor(height, width, channels))
        x = self._tensor(height, width, channels)
        part = self._tensor(height, width, 2 * channels).split(channels, 1)[1]
        if step.kind in ("resize", "resize_part"):
            source, target = part if step.kind == "resize_part" else x, step.site[2:]
            return lambda: F.interpolate(source, size=target, mode="bilinear", align_corners=True)
        if step.kind in ("separable", "full", "context"):
            return self._spatial(step.kind, channels, x)
        return {
            "mean": lambda: x.mean((2, 3), keepdim=True),
            "relu6": lambda: F.relu6(x),
            "finish": lambda: F.relu6(x, inplace=True),
            "add": lambda: x + x,
            "add_part": lambda: x + part,
        }[step.kind]

    def _spatial(self, kind: str, c: int, x: Tensor) -> Callable[[], Tensor]:
        if kind == "full":
            full = self._conv(c, c, 3)
            return lambda: F.relu6(full(x), inplace=True)
        last = self._conv(3 * c if kind == "context" else c, c)
        if kind == "separable":
            spatial = self._conv(c, c, 3, groups=c)
            return lambda: F.relu6(last(F.relu6(spatial(x), inplace=True)), inplace=True)
        branches = [self._conv(c, c, 3, dilation=dilation, groups=c) for dilation in (1, 2, 4)]
        scaling, mean_product = self._conv(c, c, groups=c), self._conv(c, c)

        def context() -> Tensor:
            near = [F.relu6(branch(x), inplace=True) for branch in branches]
            mean = F.relu6(scaling(x.mean((2, 3), keepdim=True)))
            return F.relu6(x + (last(torch.cat(near, 1)) + mean_product(mean)))

        return context

    @staticmethod
    def _call(conv: nn.Conv2d, x: Tensor) -> Callable[[], Tensor]:
        return lambda: conv(x)

    def _conv(self, inputs: int, outputs: int, kernel: int = 1, dilation: int = 1, groups: int = 1) -> nn.Conv2d:
        padding = dilation * (kernel // 2)
        conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation, groups=groups, device=self.device)
        return conv.requires_grad_(False).to(memory_format=self._format)

    def _tensor(self, height: int, width: int, channels: int) -> Tensor:
        """Noise of a shape, the same for all steps."""
        key = (channels, height, width)
        if key not in self._tensors:
            self._tensors[key] = torch.rand(1, *key, device=self.device).contiguous(memory_format=self._format)
        return self._tensors[key]
