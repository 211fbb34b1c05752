"""Times of the steps of connectivity networks on the machine at hand.

They are timed in turn by :func:`sparsemask.timing.timer`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.masks import DOWN, UP
from sparsemask.spaces.connectivity.decoder_steps import CONSTANT, Geometry, Step

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
