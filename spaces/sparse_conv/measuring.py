"""What a network of sparse mask convolutions computes on given pictures, and how long it takes."""

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
from sparsemask.sparse import backend, repeatable
from sparsemask.tables import table
from sparsemask.timing import compare

COLUMNS = ("kept", "executed", "dense", "ms", "dense_ms")


def module_table(channels: dict[str, np.ndarray], by_module: dict[str, dict[str, float]]) -> str:
    """What each module keeps, as text: dense channels of every layer, kept locations, kept fraction.

    channels: hard channel masks (layers, channels). by_module: as :meth:`Watch.by_module` gives it.
    """
    rows = [
        {**by_module[name], "module": name, "dense": f"{' '.join(map(str, mask.sum(1).tolist()))} of {mask.shape[1]}"}
        for name, mask in channels.items()
    ]
    columns = {"module": "module", "dense": "dense channels by layer"}
    return table(rows, {**columns, "locations": ("kept locations", ".3f"), "kept": ("kept fraction", ".3f")})


def relative_difference(found, wanted) -> float:
    """Mean difference of two outputs over the mean size of `wanted`, the worst of their tensors; NaN where one is."""
    worst = 0.0
    for a, b in zip(_tensors(found), _tensors(wanted), strict=True):
        apart = float((a - b).abs().mean() / b.abs().mean().clamp_min(1e-6))
        worst = apart if math.isnan(apart) else max(worst, apart)
        if math.isnan(worst):
            break
    return worst


def tolerance(arithmetic) -> float:
    """The relative difference that rounding may make in this arithmetic: it may turn a few masks."""
    if (arithmetic.autocast or arithmetic.parameters) in (torch.bfloat16, torch.float16):
        return 0.1
    return 0.001 if arithmetic.device.type == "cpu" else 0.01  # GPUs may convolve with 10 bits (TF32)


def _tensors(output) -> list[Tensor]:
    """The floating-point tensors of an output."""
    return [one.float() for one in tree_leaves(output) if isinstance(one, Tensor) and one.is_floating_point()]


class Watch:
    """Calls a network picture by picture and remembers, of each, what was kept, computed and how long it took.

    Before anything is timed, the first output is compared with the judge's (backend "reference": everything convolved,
    then multiplied by the masks). Where they are not the same, `disagreement` says so and nothing is timed: what
    computes something else has no speed.

    Args:
        space: the network's space.
        network: in evaluation mode; after a call it has `kept` and `masks`. Pictures may be crops of clouds.
        arithmetic: where and in which precision (:class:`sparsemask.devices.Arithmetic`).
        rounds: timed calls of the sparse and of the dense form in turn, after one that is not; 0: no times.
        run: the call itself where it is not the network's own (tiles, ensembles); times are of that too.
        run_dense: likewise of the dense form.
        alone: whether this process sees all pictures, whatever other processes there are.
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
    ):
        self.space, self.network, self.arithmetic, self.rounds = space, network, arithmetic, rounds
        self.alone = alone
        self.form = space.fast_form(network) if run is None and isinstance(space, HasFastForm) else network
        self.run = run or self.form
        self.run_dense = run_dense or space.dense_form(network)
        self.disagreement: str | None = None
        self.rows: list[list[float]] = []
        self.modules: list[list[list[float]]] = []
        """Of each picture, each module's (share of kept locations, kept fraction)."""

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """The network's output."""
        with FlopCounterMode(display=False) as counter, repeatable():  # times are of what is the fastest, below
            out = self.run(pictures)
        locations = [float(mask.float().mean()) for mask in self.form.masks]
        fractions = [float(one.float().mean()) for one in self.form.kept]
        self.modules.append([list(pair) for pair in zip(locations, fractions, strict=True)])
        times = [float("nan")] * 2
        if self.rounds and not self.rows:
            self._judge(out, pictures)
        if self.rounds and not self.disagreement:
            calls = {"sparse": lambda: self.run(pictures), "dense": lambda: self.run_dense(pictures)}
            with self.arithmetic.context():
                found = compare(calls, self.rounds, warmup=1, device=pictures.device)
            times = [found["sparse"], found["dense"]]
        executed, dense = counter.get_total_flops() // 2, self.space.dense_cost(self.network, pictures)
        self.rows.append([float(mean_kept(self.form)), executed, dense, *times])
        return out

    def _judge(self, out: Tensor, pictures: Tensor) -> None:
        with backend("reference"):
            apart = relative_difference(out, self.run(pictures))
        if not apart <= tolerance(self.arithmetic):
            self.disagreement = (
                f"the network that skips and the one that multiplies by its masks must be equal and are not: outputs "
                f"differ by {apart:.1%} of their size; no speed is claimed"
            )

    def table(self) -> Tensor:
        """(pictures, 5) float64: COLUMNS of each picture in the task's order, over all processes."""
        return self._whole(torch.tensor(self.rows, dtype=torch.float64).reshape(-1, len(COLUMNS)))

    def by_module(self) -> dict[str, dict[str, float]]:
        """Module name -> means over the pictures: share of kept `locations`, and kept fraction `kept`."""
        names = list(blocks(self.network))
        values = self._whole(torch.tensor(self.modules, dtype=torch.float64).reshape(len(self.rows), -1))
        means = values.mean(0).reshape(len(names), 2).tolist()
        return {name: {"locations": a, "kept": b} for name, (a, b) in zip(names, means, strict=True)}

    def _whole(self, mine: Tensor) -> Tensor:
        """The rows of all processes: every world()-th is one's own, or where they do not have as many, one by one."""
        if self.alone:
            return mine
        rank, world = distributed.rank(), distributed.world()
        counts = torch.zeros(world, dtype=torch.long, device=self.arithmetic.device)
        counts[rank] = len(mine)
        counts = distributed.total(counts).tolist()
        count, start = sum(counts), sum(counts[:rank])
        in_turn = all(have == len(range(r, count, world)) for r, have in enumerate(counts))
        whole = torch.zeros(count, mine.shape[1], dtype=mine.dtype, device=self.arithmetic.device)
        whole[slice(rank, None, world) if in_turn else slice(start, start + len(mine))] = mine.to(whole)
        return distributed.total(whole).cpu()
