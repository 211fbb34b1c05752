"""Measure what a network of sparse mask convolutions keeps and computes on inputs, and how long it takes."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sparsemask.engine import distributed
from sparsemask.spaces.protocols import HasFastForm
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork
from sparsemask.spaces.sparse_conv.masked_space import MaskedSpace
from sparsemask.spaces.sparse_conv.masking import blocks, mean_kept
from sparsemask.spaces.sparse_conv.planning import Planner
from sparsemask.sparse import backend, repeatable
from sparsemask.tables import table
from sparsemask.timing import compare

COLUMNS = ("kept", "executed", "dense", "ms", "dense_ms")


def module_table(channels: dict[str, np.ndarray], by_module: dict[str, dict[str, float]]) -> str:
    """Return a table of each module's dense channels by layer, kept locations and kept fraction.

    Args:
        channels: hard channel masks, bool (layers, channels), by module.
        by_module: as :meth:`Watch.by_module` returns it.
    """
    rows = [
        {**by_module[name], "module": name, "dense": f"{' '.join(map(str, mask.sum(1).tolist()))} of {mask.shape[1]}"}
        for name, mask in channels.items()
    ]
    columns = {"module": "module", "dense": "dense channels by layer"}
    return table(rows, {**columns, "locations": ("kept locations", ".3f"), "kept": ("kept fraction", ".3f")})


def relative_difference(actual, expected) -> float:
    """Mean absolute difference of two outputs over the mean magnitude of `expected`; the largest of their tensors."""
    worst = 0.0
    for a, b in zip(_tensors(actual), _tensors(expected), strict=True):
        apart = float((a - b).abs().mean() / b.abs().mean().clamp_min(1e-6))
        worst = apart if math.isnan(apart) else max(worst, apart)
        if math.isnan(worst):
            break
    return worst


def tolerance(arithmetic) -> float:
    """Relative difference that rounding may cause in this arithmetic, including a few flipped mask entries."""
    if (arithmetic.autocast or arithmetic.parameters) in (torch.bfloat16, torch.float16):
        return 0.1
    return 0.001 if arithmetic.device.type == "cpu" else 0.01  # GPUs may convolve with 10 bits (TF32)


def _tensors(output) -> list[Tensor]:
    """The floating-point tensors of an output."""
    return [leaf.float() for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


class Watch:
    """Calls a network input by input and records what was kept and computed and how long it took.

    Before timing, the first output is compared with the reference backend's (everything convolved, then multiplied by
    the masks). If they differ, `disagreement` describes it and nothing is timed.

    Args:
        space: the network's space.
        network: in evaluation mode; after a call it has `kept` and `masks`. Inputs are images, pairs or crops.
        arithmetic: device and precision (:class:`sparsemask.devices.Arithmetic`).
        rounds: timed calls of the sparse and of the dense form in turn, after an untimed one; 0: no timing.
        run: replaces the network's own call (tiles, ensembles); it is timed too.
        run_dense: replaces the dense form's call.
        alone: whether this process sees all inputs even if there are other processes.
        planner: finds how the network is computed fastest before it is timed; None: backend `auto` decides.
    """

    def __init__(
        self,
        space: MaskedSpace,
        network: MaskedNetwork,
        arithmetic,
        rounds: int = 0,
        run: Callable[[Tensor], Tensor] | None = None,
        run_dense: Callable[[Tensor], Tensor] | None = None,
        alone: bool = False,
        planner: Planner | None = None,
    ):
        self.planner = planner
        self.space, self.network, self.arithmetic, self.rounds = space, network, arithmetic, rounds
        self.alone = alone
        self.form = space.fast_form(network) if run is None and isinstance(space, HasFastForm) else network
        self.run = run or self.form
        self.run_dense = run_dense or space.dense_form(network)
        self.disagreement: str | None = None
        self.rows: list[list[float]] = []
        self.modules: list[list[list[float]]] = []
        """By input and module: keep ratio of locations, kept fraction."""

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Run the network on a batch of one, record its measurements and return its output."""
        with FlopCounterMode(display=False) as counter, repeatable():  # times are of what is the fastest, below
            out = self.run(images)
        locations = [float(mask.float().mean()) for mask in self.form.masks]
        fractions = [float(fraction.float().mean()) for fraction in self.form.kept]
        self.modules.append([list(pair) for pair in zip(locations, fractions, strict=True)])
        times = [float("nan")] * 2
        if self.rounds and not self.rows:
            self._judge(out, images)
        if self.rounds and not self.disagreement:
            if self.planner is not None:
                with self.arithmetic.context():
                    self.planner.see(images)
            calls = {"sparse": lambda: self.run(images), "dense": lambda: self.run_dense(images)}
            with self.arithmetic.context():
                milliseconds = compare(calls, self.rounds, warmup=1, device=images.device)
            times = [milliseconds["sparse"], milliseconds["dense"]]
        executed, dense = counter.get_total_flops() // 2, self.space.dense_cost(self.network, images)
        self.rows.append([float(mean_kept(self.form)), executed, dense, *times])
        return out

    def _judge(self, out: Tensor, images: Tensor) -> None:
        with backend("reference"):
            apart = relative_difference(out, self.run(images))
        if not apart <= tolerance(self.arithmetic):
            self.disagreement = (
                f"the network that skips and the one that multiplies by its masks must be equal and are not: outputs "
                f"differ by {apart:.1%} of their size; no speed is claimed"
            )

    def table(self) -> Tensor:
        """Return the measurements of all processes, float64 (inputs, 5): `COLUMNS` by input, in the task's order."""
        return self._gathered(torch.tensor(self.rows, dtype=torch.float64).reshape(-1, len(COLUMNS)))

    def by_module(self) -> dict[str, dict[str, float]]:
        """Return means over the inputs by module: keep ratio of `locations` and kept fraction `kept`."""
        names = list(blocks(self.network))
        values = self._gathered(torch.tensor(self.modules, dtype=torch.float64).reshape(len(self.rows), -1))
        means = values.mean(0).reshape(len(names), 2).tolist()
        return {name: {"locations": a, "kept": b} for name, (a, b) in zip(names, means, strict=True)}

    def _gathered(self, rows: Tensor) -> Tensor:
        """Gather the rows of all processes: interleaved if the counts fit a strided split, else concatenated."""
        if self.alone:
            return rows
        rank, world = distributed.rank(), distributed.world()
        counts = torch.zeros(world, dtype=torch.long, device=self.arithmetic.device)
        counts[rank] = len(rows)
        counts = distributed.total(counts).tolist()
        count, start = sum(counts), sum(counts[:rank])
        in_turn = all(length == len(range(r, count, world)) for r, length in enumerate(counts))
        gathered = torch.zeros(count, rows.shape[1], dtype=rows.dtype, device=self.arithmetic.device)
        gathered[slice(rank, None, world) if in_turn else slice(start, start + len(rows))] = rows.to(gathered)
        return distributed.total(gathered).cpu()
