"""What a decoder may cost: the flags of a budget, and costs of masks in the budget's unit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from sparsemask.config import Section, flag
from sparsemask.devices import arithmetic, processor
from sparsemask.engine import distributed
from sparsemask.errors import UseError, say
from sparsemask.inference import optimize_for_inference
from sparsemask.masks import DOWN, UP
from sparsemask.masks.decoder import MULTIPLE, POINTWISE, DecoderMask, decoder_mask, deepest_end_point
from sparsemask.options import amount, factor, share_or
from sparsemask.runs import Run
from sparsemask.spaces.connectivity.cost_table import CostTable, Counts, cost_table, count_costs
from sparsemask.spaces.connectivity.named_masks import named_mask
from sparsemask.spaces.connectivity.space import ConnectivityConfig
from sparsemask.tables import format_count
from sparsemask.timing import BUSY, busy_note, timer


class Costs(Protocol):
    """What is asked of a :class:`~sparsemask.spaces.connectivity.cost_table.CostTable`."""

    encoder_multiply_adds: Sequence[int]

    def predict(self, mask: np.ndarray | DecoderMask) -> float:
        """Milliseconds of a mask's network."""

    def multiply_adds(self, mask: np.ndarray | DecoderMask) -> int:
        """Multiply-adds of a mask's network."""

    def expected(self, v: Sequence[Tensor], currency: str = "ms") -> Tensor:
        """Expected cost of relaxed masks v[i] (i+1, 2) in [0, 1]: a scalar with its graph."""

    def explain(self, mask: np.ndarray | DecoderMask) -> Sequence[tuple[str, float, float]]:
        """What a mask's milliseconds are made of: (part, milliseconds, share)."""


@dataclass(frozen=True)
class Budget:
    """The most that a network may cost.

    Attributes:
        unit: milliseconds as the cost table predicts them, or multiply-adds.
        most: the bound.
        relative: whether it is a share of what the network with every connection costs.
    """

    unit: Literal["ms", "multiply-adds"]
    most: float
    relative: bool = False

    def resolved(self, costs: Costs) -> Budget:
        """The budget in its unit: a share of the dense network's cost becomes that cost."""
        if not self.relative:
            return self
        dense = named_mask("dense", len(costs.encoder_multiply_adds))
        whole = Budget(self.unit, self.most * self.cost(costs, dense))
        return replace(whole, most=round(whole.most)) if self.unit == "multiply-adds" else whole

    def cost(self, costs: Costs, mask: np.ndarray | DecoderMask) -> float:
        """What a mask's network costs in this unit."""
        return float(costs.predict(mask) if self.unit == "ms" else costs.multiply_adds(mask))

    def text(self, cost: float | None = None) -> str:
        """A cost in words; by default the bound."""
        return cost_text(self.most if cost is None else cost, self.unit)

    @property
    def flag(self) -> str:
        """The flag as it was given."""
        name = "--budget_ms" if self.unit == "ms" else "--budget_macs"
        if self.relative:
            return f"{name} {100 * self.most:g}%"
        return f"{name} {self.most:g}" if self.unit == "ms" else f"{name} {self.most / 1e6:g}M"

    @property
    def name(self) -> str:
        """For names of files."""
        return f"{self.most:g}ms" if self.unit == "ms" else f"{self.most / 1e6:g}M"

    def check(self, costs: Costs, wide: bool = False) -> None:
        """Refuse a budget below what any mask costs.

        Args:
            costs: of the encoder.
            wide: whether decoders of the wider space are meant.

        Raises:
            UseError: the message says what the least is made of.
        """
        least = min(smallest_masks(len(costs.encoder_multiply_adds), wide), key=lambda mask: self.cost(costs, mask))
        if self.cost(costs, least) > self.most:
            raise UseError(f"{self.flag}: the least that any mask costs is {self.made_of(costs, least)}")

    def made_of(self, costs: Costs, mask: np.ndarray | DecoderMask) -> str:
        """A mask's cost and its dearest parts in words."""
        if self.unit == "ms":
            parts = [(name, ms) for name, ms, _ in costs.explain(mask)[:4]]
        else:
            connections = mask.connections if isinstance(mask, DecoderMask) else mask
            encoder = costs.encoder_multiply_adds[deepest_end_point(connections)]
            parts = [("encoder", encoder), ("decoder", self.cost(costs, mask) - encoder)]
        return f"{self.text(self.cost(costs, mask))} ({', '.join(f'{name} {self.text(cost)}' for name, cost in parts)})"


def smallest_masks(length: int, wide: bool) -> Iterator[np.ndarray | DecoderMask]:
    """The masks of one connection, among which is the cheapest; of the wider space with the narrowest stages."""
    for output in range(length) if wide else [length - 1]:
        for j, kind in [*((j, DOWN) for j in range(output + 1)), (0, UP)]:
            mask = np.zeros((length, length, 2), bool)
            mask[output, j, kind] = True
            yield decoder_mask(mask, [POINTWISE] * length, [MULTIPLE] * length) if wide else mask


def cost_text(cost: float, unit: str) -> str:
    """A cost in words, such as '12.3 ms' or '30.1 M multiply-adds'."""
    return (
        f"{cost:.3g} ms"
        if unit == "ms" and cost < 100
        else (f"{cost:.0f} ms" if unit == "ms" else f"{format_count(cost)} multiply-adds")
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetSection(Section):
    """The most that the network found may cost."""

    alternatives = (("method", "budget_ms", "budget_macs"),)
    budget_ms: float | str | None = flag(
        None,
        share_or(factor),
        group="budget",
        metavar="MS",
        help="most milliseconds of one picture, as predicted from this machine's costs; 40%%: of the dense network's",
    )
    budget_macs: float | str | None = flag(
        None,
        share_or(amount),
        group="budget",
        metavar="MACS",
        help="most multiply-adds instead, such as 30M, 0.05G, or 35%% of the dense network's",
    )

    def check(self) -> None:
        """One budget at most."""
        if self.budget_ms is not None and self.budget_macs is not None:
            raise UseError("--budget_ms and --budget_macs: one budget at a time; leave one out")

    @property
    def budget(self) -> Budget | None:
        """The budget that is given; None without one."""
        return of_flags({"budget_ms": self.budget_ms, "budget_macs": self.budget_macs})


def of_flags(flags: Mapping[str, Any]) -> Budget | None:
    """The budget among flags by name; None without one."""
    for name, unit in (("budget_ms", "ms"), ("budget_macs", "multiply-adds")):
        value = flags.get(name)
        if isinstance(value, str):
            return Budget(unit, float(value.rstrip("%")) / 100, relative=True)
        if value is not None:
            return Budget(unit, float(value))
    return None


def cost_side(flags: Mapping[str, Any]) -> int:
    """The side of the picture that costs are of, of flags by name."""
    return int(flags.get("cost_size") or flags["crop_size"])


COSTS = "costs.json"  # of a run's folder: the table that the run reckons with, whatever is measured later


def open_costs(
    config: Mapping[str, Any], run: Run | None = None, training: bool = True, unit: str = "ms"
) -> CostTable | Counts:
    """The costs of a configuration's encoder on this machine: a run's own, else from the cache, else measured.

    Args:
        config: flags of a search, by name.
        run: what it reckons with is kept in its folder, so that a resumed run reckons alike.
        training: False: a table of another machine is not used, but measured anew, and a line says so.
        unit: "multiply-adds": these alone are asked for, and nothing is measured.

    Raises:
        UseError: a damaged file, or an encoder that cannot be measured.
    """
    options, side = ConnectivityConfig.from_options({**config}), cost_side(config)
    size, network = (side, side), options.encoder
    if unit != "ms":
        return count_costs(options.backbone_name, size, depth=options.depth, n_class=options.n_class, network=network)
    kept = run.folder / COSTS if run is not None else None
    if kept is not None and kept.is_file():
        table = CostTable.load(kept)
        if training or table.key.processor == processor():
            return table
        say(f"{kept}: of another machine ({table.key.processor}); the costs of this one count")
    table = cost_table(
        options.backbone_name,
        size,
        depth=options.depth,
        n_class=options.n_class,
        device=arithmetic(config.get("gpu", 0)).device,
        network=network,
        progress=say,
    )
    if kept is not None and training and distributed.rank() == 0:
        table.save(kept)
    return table


def measured_ms(network: nn.Module, size: int, device: torch.device) -> float:
    """Milliseconds of one picture, measured in the form that cost tables predict; a line where the machine is busy.

    Args:
        network: trained or not.
        size: height and width of the picture.
        device: where it runs.
    """
    example = torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(0)).to(device)
    form = optimize_for_inference(network, example, compiled=False)
    times, busy = timer(device, torch.get_num_threads())({"network": lambda: form(example)}, 15)
    if busy > BUSY:
        say(busy_note(busy))
    return times["network"]
