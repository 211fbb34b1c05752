"""What became of a network: costs before and after, what went, what stayed and why."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from sparsemask.errors import UseError
from sparsemask.spaces.group_sparsity.compression.accounting import Accounting
from sparsemask.spaces.group_sparsity.shrinking.channels import Channels
from sparsemask.spaces.group_sparsity.shrinking.recipe import Recipe
from sparsemask.spaces.group_sparsity.tracing.graph import ChannelGraph
from sparsemask.tables import format_count, table

_LINES = 24  # layers of a printed report
_SETS = 40  # sets of channels of a printed plan


@dataclass(frozen=True)
class Costs:
    """Cost of one call with the example inputs, in evaluation mode."""

    multiply_adds: int
    parameters: int
    milliseconds: float | None = None
    """None where it was not measured."""

    def by(self, name: str) -> float:
        """The cost called "multiply-adds", "parameters" or "milliseconds" (NaN if it was not measured)."""
        if name == "milliseconds":
            return float("nan") if self.milliseconds is None else self.milliseconds
        return self.parameters if name == "parameters" else self.multiply_adds


@dataclass(frozen=True)
class Origin:
    """What a network was before it was made smaller: the costs of which targets are shares, and its layers' widths."""

    costs: Costs
    widths: Mapping[str, tuple[int, int]]
    name: str


@dataclass(frozen=True)
class LayerChange:
    """Channels of a layer that changed, (inputs, outputs) before and after."""

    layer: str
    before: tuple[int, int]
    after: tuple[int, int]


@dataclass(frozen=True)
class Locked:
    """Output channels of a layer that cannot be removed, or not without a change of the function, and why."""

    layer: str
    channels: int
    of: int
    reason: str

    @property
    def why(self) -> str:
        """The reason without the name of a module, of which only the class is said."""
        return re.sub(r"^module '[^']*' \((\w+)\): ", r"\1: ", self.reason)


@dataclass(frozen=True)
class Report:
    """What :func:`sparsemask.shrink` did; ``print`` shows it.

    Attributes:
        network: name of the class.
        inputs: shapes of the example.
        target: what was asked for.
        how: importance, policy and fold.
        before: costs of the whole network.
        after: costs of the small one.
        layers: what went, by layer.
        locked: what could not go, by layer.
        notes: what is to be known of the result: a target that was missed and why, a busy machine.
        recipe: which channels stayed, from which the original class can be made small again.
        place: where milliseconds were measured; empty where they were not.
        approximate: what went although that changes the function, since statistics were taken over it (`fold="none"`).
    """

    network: str
    inputs: str
    target: str
    how: str
    before: Costs
    after: Costs
    layers: tuple[LayerChange, ...]
    locked: tuple[Locked, ...]
    notes: tuple[str, ...]
    recipe: Recipe
    place: str = ""
    approximate: tuple[Locked, ...] = ()

    def __str__(self) -> str:
        rows = []
        for name in ("multiply-adds", "parameters", "milliseconds"):
            before, after = self.before.by(name), self.after.by(name)
            show = format_count if name != "milliseconds" else "{:.2f}".format
            if before == before and after == after:
                left = after / before if before else 1.0
                rows.append({"cost": name, "before": show(before), "after": show(after), "left": f"{left:.1%}"})
        where = f"; {self.place}" if self.place else ""
        lines = [f"{self.network}, {self.inputs}: {self.target} ({self.how}{where})", ""]
        lines += [table(rows, ("cost", "before", "after", "left")), ""]
        changed = [
            {"layer": c.layer, "inputs": _arrow(c.before[0], c.after[0]), "outputs": _arrow(c.before[1], c.after[1])}
            for c in self.layers
        ]
        if changed:
            lines.append(table(changed[:_LINES], {"layer": "layer", "inputs": "inputs", "outputs": "outputs"}))
            if len(changed) > _LINES:
                lines.append(f"... and {len(changed) - _LINES} more (report.layers)")
        lines += [*locked_lines(self.locked), *locked_lines(self.approximate, "changes the function")]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def as_json(self) -> dict[str, Any]:
        """The report as values of JSON."""
        return {**asdict(self), "recipe": self.recipe.as_json()}

    @classmethod
    def from_json(cls, values: object, what: object) -> Report:
        """Make a report from the values of :meth:`as_json`, perhaps of a stranger's file.

        Raises:
            UseError: they are no report; the message begins with `what`.
        """
        try:
            entries = dict(values)  # type: ignore[call-overload]
            recipe = Recipe.from_json(entries["recipe"], what)
            before, after = (_costs(entries[name]) for name in ("before", "after"))
            layers = tuple(
                LayerChange(str(v["layer"]), _pair(v["before"]), _pair(v["after"])) for v in entries["layers"]
            )
            locked, approximate = (
                tuple(Locked(str(v["layer"]), int(v["channels"]), int(v["of"]), str(v["reason"])) for v in entries[key])
                for key in ("locked", "approximate")
            )
            notes = tuple(str(note) for note in entries["notes"])
            texts = {name: str(entries[name]) for name in ("network", "inputs", "target", "how", "place")}
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UseError(f"{what}: its report is not readable; was it written by sparsemask.save?") from None
        return cls(
            before=before,
            after=after,
            layers=layers,
            locked=locked,
            notes=notes,
            recipe=recipe,
            approximate=approximate,
            **texts,
        )


def former_report(network: nn.Module) -> Report | None:
    """The report of a network that :func:`sparsemask.shrink` made; None for others."""
    report = vars(network).get("report")
    return report if isinstance(report, Report) else None


def channel_lines(channels: Sequence[Channels], accounting: Accounting) -> list[str]:
    """A table of sets of channels with the share of the multiply-adds that would go with all of them but one."""
    total = accounting.count()
    rows = []
    for c in channels:
        one = accounting.count(c.elements[1:]) if c.count > 1 else total
        share = (total.multiply_adds - one.multiply_adds) / max(total.multiply_adds, 1)
        layers = ", ".join(m.module for m in c.makers[:3]) + (", ..." if len(c.makers) > 3 else "")
        size = f" of {c.groups.size} channels" if c.groups.size > 1 else ""
        rows.append({"made by": layers, "groups": f"{c.count}{size}", "takes": f"{share:.1%}"})
    more = [f"... and {len(rows) - _SETS} more (plan.channels)"] if len(rows) > _SETS else []
    return [table(rows[:_SETS], {"made by": "made by", "groups": "can go", "takes": "takes"}), *more]


def locked_lines(locked: Sequence[Locked], what: str = "stays") -> list[str]:
    """A line for every reason why channels stay (or `what` else), with the layers that have it."""
    reasons: Mapping[str, list[Locked]] = defaultdict(list)
    for one in locked:
        reasons[one.why].append(one)
    lines = []
    for reason, layers in reasons.items():
        names = ", ".join(f"{one.layer} ({one.channels} of {one.of})" for one in layers[:3])
        more = f" and {len(layers) - 3} more" if len(layers) > 3 else ""
        lines.append(f"{what}: {names}{more}: {reason}")
    return lines


def _arrow(before: int, after: int) -> str:
    return f"{before} -> {after}" if before != after else f"{before}"


def _pair(values: Sequence[int]) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


def _costs(values: Mapping[str, Any]) -> Costs:
    milliseconds = values["milliseconds"]
    return Costs(
        int(values["multiply_adds"]), int(values["parameters"]), None if milliseconds is None else float(milliseconds)
    )


def locked_layers(graph: ChannelGraph, elements: np.ndarray, reason: str = "") -> tuple[Locked, ...]:
    """The layers that make some elements, bool (graph.count,), with the graph's reasons unless one is given."""
    result = []
    for node in graph.nodes:
        layer, made = graph.module_of(node), np.asarray(node.makes)
        stays = made[elements[made]]
        if not len(stays) or node.weight is None or node.weight.parameter != f"{layer}.weight":
            continue
        first = int(stays[0])
        why = (
            reason or graph.reason(first) or graph.approximation(first) or "its weights are computed, not a layer's own"
        )
        result.append(Locked(layer, len(stays), len(made), why))
    return tuple(result)


def place_of(device: torch.device) -> str:
    """Where milliseconds are measured: a GPU's name, or the CPU and torch's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"
