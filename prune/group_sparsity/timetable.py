"""Predict the milliseconds of pruned networks from layers measured on this device.

Time is not proportional to channels: devices work in blocks of channels, and two thin convolutions may take longer than
the one they replace. Every layer is therefore measured at the channel numbers that are considered.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sparsemask.spaces.group_sparsity.reduction import Reduction
from sparsemask.timing import milliseconds

_STEPS = (16, 8, 4, 2)
_SAME = 0.97  # ratio of times above which both count as equal
_REPEATS, _SECONDS = 15, 0.15  # of one measurement


@dataclass
class _Layer:
    """Geometry of a convolution or linear layer, without its channel numbers."""

    module: nn.Module
    size: tuple[int, ...]  # of the input, without batch and channels
    groups: int
    per_group: int  # outputs a group

    @property
    def key(self) -> tuple:
        m = self.module
        if isinstance(m, nn.Linear):
            return ("linear",)
        return (m.kernel_size, m.stride, m.padding, m.dilation, self.size, self.groups > 1 and self.per_group)


@dataclass
class Timetable:
    """Measured times of a network's layers, summed to predict the time of pruned networks.

    Attributes:
        reduction: the group structure.
        network: one of this structure, for the geometry of its layers.
        batch: inputs at once.
        device: of the measurements.
    """

    reduction: Reduction
    network: nn.Module
    batch: int
    device: torch.device
    elementwise: float = 0.0
    """Milliseconds of an elementwise operation on one sample; see :meth:`calibrate`."""
    _known: dict[tuple, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.layers: dict[str, _Layer] = {}
        graph = self.reduction.graph
        for node in graph.nodes:
            name = graph.module_of(node)
            module = self.network.get_submodule(name)
            if isinstance(module, nn.Conv2d | nn.Linear):
                conv = isinstance(module, nn.Conv2d)
                size, groups = (tuple(node.inputs[0].shape[2:]), module.groups) if conv else ((), 1)
                self.layers[name] = _Layer(module, size, groups, module.weight.shape[0] // groups)
        self.step = self._step()

    def _step(self) -> int:
        """Measure the largest step such that channel numbers between its multiples are as slow as the next multiple."""
        convs = [
            layer
            for layer in self.layers.values()
            if layer.size and layer.groups == 1 and layer.module.out_channels >= 32
        ]
        if not convs:
            return 1
        widest = max(convs, key=lambda layer: layer.module.weight.numel())
        n_in, n_out = min(widest.module.in_channels, 128), min(widest.module.out_channels, 128) // 16 * 16
        full = self._measure(widest, n_in, n_out)
        for step in _STEPS:
            between = [n_out - step + 1, n_out - step // 2] if step > 2 else [n_out - 1]
            if all(self._measure(widest, n_in, n) >= _SAME * full for n in between):
                return step
        return 1

    def time(self, name: str, n_in: int, n_out: int) -> float:
        """Return a layer's milliseconds with these channels, rounded up to multiples of the device's step."""
        layer = self.layers[name]
        return self._time(layer, n_in, n_out, *layer.module.weight.shape[:2])

    def _time(self, layer: _Layer, n_in: int, n_out: int, most_out: int, most_in: int) -> float:
        if layer.groups == 1:
            n_in, n_out = (
                min(-(-n // self.step) * self.step, most) for n, most in ((n_in, most_in), (n_out, most_out))
            )
        key = (*layer.key, n_in, n_out)
        if key not in self._known:
            self._known[key] = self._measure(layer, n_in, n_out)
        return self._known[key]

    def _measure(self, layer: _Layer, n_in: int, n_out: int) -> float:
        m, device = layer.module, self.device
        if isinstance(m, nn.Linear):
            x, w = torch.randn(self.batch, n_in, device=device), torch.randn(n_out, n_in, device=device)
            call = lambda: F.linear(x, w)
        else:
            groups = max(1, n_out // layer.per_group) if layer.groups > 1 else 1
            last = torch.channels_last
            x = torch.randn(self.batch, n_in, *layer.size, device=device).contiguous(memory_format=last)
            w = torch.randn(n_out, n_in // groups, *m.kernel_size, device=device).contiguous(memory_format=last)
            b = torch.zeros(n_out, device=device)
            call = lambda: F.conv2d(x, w, b, m.stride, m.padding, m.dilation, groups)
        # The fastest call, which other load on the machine affects least.
        return milliseconds(call, repeats=_REPEATS, warmup=2, device=self.device, budget=_SECONDS).fastest

    def predict(self, gone: np.ndarray, merge: str = "auto") -> tuple[float, tuple[str, ...]]:
        """Predict the time of the network without some elements.

        Args:
            gone: bool (graph.count,), the removed elements.
            merge: "auto": the faster form of every pair; "plan" or "none" as :meth:`Reduction.merged`.

        Returns:
            Milliseconds, and the names of the merged pairs.
        """
        ends = self.reduction.accounting.layers(gone)
        fixed = None if merge == "auto" else set(self.reduction.merged(gone, merge))
        total, merged = 0.0, []
        inner = {f"{name}.{part}" for name in self.reduction.pairs for part in (0, 1)}
        for name, channels in ends.items():
            if name in self.layers and name not in inner and all(channels):
                total += self.time(name, *channels)
        for name in self.reduction.pairs:
            (n_in, rank), (_, n_out) = ends[f"{name}.0"], ends[f"{name}.1"]
            if not rank:  # of a branch that is gone
                continue
            pair = self.time(f"{name}.0", n_in, rank) + self.time(f"{name}.1", rank, n_out)
            pair += self.elementwise * math.prod(self.layers[f"{name}.1"].size) * rank  # written and read once more
            merged_time = self._merged_time(name, n_in, n_out)
            chosen = merged_time <= pair if fixed is None else name in fixed
            total += merged_time if chosen else pair
            if chosen:
                merged.append(name)
        count = self.reduction.accounting.count(gone)
        return total + self.elementwise * (count.published - count.multiply_adds), tuple(merged)

    def _merged_time(self, name: str, n_in: int, n_out: int) -> float:
        """Milliseconds of a pair's merged convolution: the first one's kernel, the second one's outputs."""
        first, second = self.layers[f"{name}.0"], self.layers[f"{name}.1"]
        return self._time(first, n_in, n_out, second.module.weight.shape[0], first.module.weight.shape[1])

    def calibrate(self, plain: float) -> float:
        """Attribute the plain network's time beyond its layers to elementwise operations.

        Args:
            plain: measured milliseconds of the plain network.

        Returns:
            The prediction for the plain network.
        """
        self.elementwise = 0.0
        count = self.reduction.baseline["multiply-adds"] - self.reduction.baseline["executed"]
        nothing = np.zeros(self.reduction.graph.count, dtype=bool)
        layers = sum(
            self.time(name, *ends)
            for name, ends in self.reduction.accounting.layers(nothing).items()
            if name in self.layers and name.rpartition(".")[0] not in self.reduction.pairs
        )
        for name in self.reduction.pairs:
            first, second = (self.layers[f"{name}.{part}"].module for part in (0, 1))
            layers += self._merged_time(name, first.in_channels, second.out_channels)
        self.elementwise = max(0.0, plain - layers) / max(1, count)
        return layers + self.elementwise * count

    def fill(self, kept: Mapping[str, np.ndarray], norms: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Restore dropped groups that cost no time, set by set, largest norms first.

        Args:
            kept: by set name, bool (count,).
            norms: of the groups, by set name.

        Returns:
            `kept` with the restored groups.
        """
        kept = {name: np.array(k) for name, k in kept.items()}
        now, _ = self.predict(self.reduction.removal.gone(kept))
        for name in kept:
            order = np.argsort(-np.asarray(norms[name]), kind="stable")
            order = order[~kept[name][order]]
            for take in range(len(order), 0, -max(1, min(self.step, len(order)) // 2)):
                tried = {**kept, name: np.array(kept[name])}
                tried[name][order[:take]] = True
                time, _ = self.predict(self.reduction.removal.gone(tried))
                if time <= now * (1 + 1e-9):
                    kept, now = tried, time
                    break
        return kept
