"""Plans: what can go of a network, and networks that meet a target."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Unpack

import numpy as np
import torch
from torch import nn

from sparsemask.errors import UseError, choose
from sparsemask.spaces.group_sparsity.compression.accounting import Accounting
from sparsemask.spaces.group_sparsity.compression.compress import FOLDS
from sparsemask.spaces.group_sparsity.compression.compress import removable as foldable
from sparsemask.spaces.group_sparsity.compression.removal import Removal
from sparsemask.spaces.group_sparsity.inputs import Inputs, device_of_network
from sparsemask.spaces.group_sparsity.shrinking import importance as importances
from sparsemask.spaces.group_sparsity.shrinking.allocation import Allocation
from sparsemask.spaces.group_sparsity.shrinking.channels import Channels, removable
from sparsemask.spaces.group_sparsity.shrinking.fitting import (
    NEAR,
    Candidates,
    Choice,
    count_costs,
    fit_share,
    fit_time,
    time_networks,
)
from sparsemask.spaces.group_sparsity.shrinking.importance import Subject
from sparsemask.spaces.group_sparsity.shrinking.recipe import recipe_of
from sparsemask.spaces.group_sparsity.shrinking.report import (
    Costs,
    LayerChange,
    Locked,
    Origin,
    Report,
    channel_lines,
    former_report,
    locked_layers,
    locked_lines,
    place_of,
)
from sparsemask.spaces.group_sparsity.shrinking.settings import Options, Settings
from sparsemask.spaces.group_sparsity.shrinking.targets import Target
from sparsemask.spaces.group_sparsity.tracing.graph import ChannelGraph, trace
from sparsemask.tables import format_count
from sparsemask.timing import BUSY, Timer, busy_note, timer

UNFOLDABLE = "what is left of it varies from place to place (padding before a pool, say): it cannot be folded exactly"
Select = Callable[[tuple[Channels, ...]], tuple[Channels, ...]]
_SECONDS = 2.0  # of timing a network, beyond the fewest rounds
_MULTIPLES = (16, 8, 4, 1)  # of channels, tried until the target is met: vector instructions take so many at once
_MET = 0.01  # of a share


@dataclass(frozen=True)
class ShrinkPlan:
    """What can be removed from a network; ``print`` shows it.

    Made by :func:`sparsemask.spaces.group_sparsity.shrinking.plan`. The network is not changed, and the user's own
    where its weights are plain: they may change before :meth:`shrink` is called, its shapes may not.

    Attributes:
        network: the whole network, with plain weights.
        inputs: the example.
        graph: its channels.
        channels: those that may be removed.
        locked: those that may not, and why.
        costs: multiply-adds and parameters of the network.
        origin: what the network was before it was first made smaller.
        select: says which channels the user left to be removed.
        fold: as for :func:`sparsemask.spaces.group_sparsity.shrinking.shrink`; the default of the methods.
        notes: what is to be known of every network made from it.
    """

    network: nn.Module
    inputs: Inputs
    graph: ChannelGraph
    channels: tuple[Channels, ...]
    locked: tuple[Locked, ...]
    costs: Costs
    origin: Origin
    select: Select
    fold: str = "exact"
    notes: tuple[str, ...] = ()

    def shrink(
        self, target: float | str | None = None, by: str = "multiply-adds", **options: Unpack[Options]
    ) -> nn.Module:
        """Make a smaller network.

        Args:
            target: as for :func:`sparsemask.spaces.group_sparsity.shrinking.shrink`.
            by: as there.
            options: `importance`, `policy`, `minimum`, `multiple`, `fold`, `data`, `loss`, `seed`, `timed`, as there.

        Returns:
            The small network, with its report.

        Raises:
            UseError: as there.
        """
        options.setdefault("fold", self.fold)
        settings = Settings(**options)
        plan = self._folding(settings.fold)
        if plan is not self:
            return plan.shrink(target, by, **options)
        if target is None and not isinstance(settings.policy, Mapping):
            raise UseError("target: missing; a share such as 0.5, or '8 ms' (only shares by layer need none)")
        goal = None if target is None else Target.parse(target, by)
        if not self.channels:
            raise UseError(f"{self.origin.name}: nothing can be removed; {'; '.join(locked_lines(self.locked)[:3])}")
        subject = Subject(self.network, self.channels, settings.data, settings.loss, settings.seed)
        scores = importances.scores(settings.importance, subject)
        removal = self._removal()
        timed = goal is not None and goal.by == "milliseconds"
        stays = self._unfoldable(removal, settings.fold)
        # To measure takes longer than to count.
        every = (1,) if goal is None else (_MULTIPLES[0], 1) if timed else _MULTIPLES
        multiples = every if settings.multiple is None else (settings.multiple,)
        best: Choice | None = None
        for multiple in multiples:
            allocation = Allocation(
                self.network,
                self.graph,
                self.channels,
                scores,
                settings.policy,
                settings.minimum,
                multiple,
                narrow=settings.multiple is None,
            )
            candidates = Candidates(self.network, self.inputs, removal, allocation, settings.fold, stays)
            choice = self._chosen(candidates, goal)
            if best is None or choice.distance < best.distance:
                best = choice
            if best.distance <= 1:
                break
        assert best is not None
        return self._finished(best, goal, settings)

    def steps(
        self, n: int, target: float | str, by: str = "multiply-adds", **options: Unpack[Options]
    ) -> Iterator[nn.Module]:
        """Make the network smaller in steps, for training in between.

        Every step removes the same factor of the cost. The next one begins at the network that was yielded, with the
        weights that it has by then: train it in place.

        Args:
            n: number of steps.
            target: of the last one, as for :func:`sparsemask.spaces.group_sparsity.shrinking.shrink`.
            by: as there.
            options: other arguments of :meth:`shrink`. `minimum` and `multiple` hold of every step's network; `data` is
                gone through in every step.

        Example:
            ``for small in plan.steps(10, target=0.5): fine_tune(small)``
        """
        if n < 1:
            raise UseError(f"steps: {n}; expected 1 or more")
        goal = Target.parse(target, by)
        current = plan = self._folding(options.get("fold", self.fold))
        if goal.by == "milliseconds":
            start, unit = self._clock_times({"whole": self.network})[0]["whole"], " ms"
            end = goal.amount if goal.unit == "ms" else goal.amount * start
        else:
            start, end, unit = self.costs.by(goal.by) / self.origin.costs.by(goal.by), goal.amount, ""
        for step in range(1, n + 1):
            amount = start * (min(end, start) / start) ** (step / n)
            small = current.shrink(f"{amount:.9f}{unit}", goal.by, **options)
            yield small
            if step < n:
                report = former_report(small)
                origin = self.origin if report is None else replace(self.origin, costs=report.before)
                current = planned(small, self.inputs, plan._same_layers, plan.fold, origin, self.notes)

    def _folding(self, fold: str) -> ShrinkPlan:
        """The plan for a treatment of constants; "none" has more channels to remove."""
        choose(fold, FOLDS, "fold")
        if statistics_of(fold) == statistics_of(self.fold):
            return self
        return planned(self.network, self.inputs, self.select, fold, self.origin, self.notes)

    def _removal(self) -> Removal:
        """What becomes zero, and what goes, with channels that are dropped."""
        return Removal(self.graph, [c.groups for c in self.channels], shifts=True)

    def _unfoldable(self, removal: Removal, fold: str) -> np.ndarray:
        """The elements whose constants cannot be folded, bool (graph.count,), as far as two trials tell."""
        stays = np.zeros(self.graph.count, dtype=bool)
        goes = {} if fold == "none" else foldable(self.network, removal, fold)
        for c in self.channels if goes else ():
            stays[c.elements[~goes[c.name]]] = True
        return stays

    def _same_layers(self, channels: tuple[Channels, ...]) -> tuple[Channels, ...]:
        """Of a smaller network's channels those that layers of this plan make."""
        layers = {member.module for c in self.channels for member in c.makers}
        return tuple(c for c in channels if all(member.module in layers for member in c.makers))

    def zeroed(self, small: nn.Module) -> nn.Module:
        """A copy of the whole network in which the channels that `small` lacks are zero.

        Zero are the weights that make them, and the scales and shifts of norms and layers that they pass through.

        With fold "exact" a small network equals it.

        Args:
            small: made from this network in one step.
        """
        report = former_report(small)
        if report is None:
            raise UseError(
                f"{type(small).__name__}: no report; only networks that sparsemask.shrink made can be compared"
            )
        plan = self._folding("none" if report.recipe.statistics == "free" else "exact")
        gone = report.recipe.gone(plan.graph)
        return plan._removal().zero_(copy.deepcopy(self.network), {c.name: ~gone[c.elements] for c in plan.channels})

    def __str__(self) -> str:
        kinds = format_count(self.costs.multiply_adds), format_count(self.costs.parameters)
        lines = [f"{self.origin.name}, {self.inputs}: {kinds[0]} multiply-adds, {kinds[1]} parameters", ""]
        lines += channel_lines(self.channels, Accounting(self.network, self.graph, frozen=True))
        return "\n".join([*lines, *locked_lines(self.locked), *(f"note: {note}" for note in self.notes)])

    def _chosen(self, candidates: Candidates, goal: Target | None) -> Choice:
        """The network that meets a target, and notes where it does not."""
        if goal is None:
            return Choice(candidates.at(0.5), candidates.unfoldable, 0.0)
        if goal.by == "milliseconds":
            return self._chosen_by_time(candidates, goal)
        whole = self.origin.costs.by(goal.by)
        candidate = fit_share(candidates, goal.amount * whole, goal.by, self.costs)
        reached = candidate.costs.by(goal.by) / whole
        missed = f"wanted {goal}, reached {reached:.1%}"
        floor = candidates.counted(candidate, goal.by) <= candidates.predicted(1.0, goal.by)
        notes = () if abs(reached - goal.amount) <= NEAR else (self._missed(missed, floor),)
        return Choice(candidate, candidates.unfoldable, abs(reached - goal.amount) / _MET, notes)

    def _chosen_by_time(self, candidates: Candidates, goal: Target) -> Choice:
        clock, wanted = self._clock(), goal.amount
        if goal.unit == "share":
            wanted *= time_networks({"whole": self.network}, self.inputs, clock)[0]["whole"]
        fitted = fit_time(candidates, wanted, self.network, self.inputs, clock)
        notes = (busy_note(fitted.busy),) if fitted.busy > BUSY else ()
        distance = abs(fitted.milliseconds / wanted - 1)
        if distance > NEAR:
            missed = f"wanted {wanted:.3g} ms, reached {fitted.milliseconds:.3g} ms"
            floor = fitted.least > (1 + NEAR) * wanted
            least = f" (the smallest network takes {fitted.least:.3g} ms)" if floor else ""
            notes = (*notes, self._missed(missed + least, floor))
        done = fitted.milliseconds < wanted and not fitted.candidate.removed.any()  # the whole network is fast enough
        times = (fitted.whole, fitted.milliseconds)
        return Choice(fitted.candidate, candidates.unfoldable, 0 if done else distance / NEAR, notes, times)

    def _missed(self, missed: str, floor: bool) -> str:
        """Say that a target was missed, and why: nothing smaller is to be had, or networks have no nearer step."""
        if not floor:
            return f"{missed}: no nearer step"
        counts = Counter(one.why for one in self.locked for _ in range(one.channels))
        stay = f"; {sum(counts.values())} channels stay, most since: {counts.most_common(1)[0][0]}" if counts else ""
        return f"{missed}: a share of every layer's channels stays (minimum){stay}"

    def _finished(self, choice: Choice, goal: Target | None, settings: Settings) -> nn.Module:
        """The network with its report."""
        candidate, notes, place = choice.candidate, choice.notes, ""
        small, before, after = candidate.network, self.origin.costs, candidate.costs
        measured = choice.times
        if measured is None and settings.timed:
            times, busy = self._clock_times({"whole": self.network, "small": small})
            measured = times["whole"], times["small"]
            if busy > BUSY:
                notes = (*notes, busy_note(busy))
        if measured is not None:
            before = before if before.milliseconds is not None else replace(before, milliseconds=measured[0])
            after = replace(after, milliseconds=measured[1])
            place = place_of(device_of_network(self.network))
        ends = Accounting(self.network, self.graph, frozen=True).layers(candidate.removed)
        changes = (LayerChange(layer, self.origin.widths.get(layer, now), now) for layer, now in ends.items())
        unfoldable = locked_layers(self.graph, choice.unfoldable, UNFOLDABLE)
        changing = locked_layers(self.graph, candidate.removed & self.graph.approximate)
        former = former_report(self.network)
        before_that, changed_before = (former.recipe, former.approximate) if former else (None, ())
        statistics = statistics_of(self.fold)
        report = Report(
            network=self.origin.name,
            inputs=str(self.inputs),
            target="shares by layer" if goal is None else str(goal),
            how=str(settings),
            before=before,
            after=after,
            layers=tuple(change for change in changes if change.before != change.after),
            locked=(*self.locked, *unfoldable),
            notes=(*self.notes, *notes),
            recipe=recipe_of(self.network, small, self.graph, candidate.removed, self.inputs, statistics, before_that),
            approximate=(*changed_before, *changing),
            place=place,
        )
        small.report = report  # type: ignore[assignment]
        return small

    def _clock(self) -> Timer:
        return timer(device_of_network(self.network), torch.get_num_threads(), _SECONDS, warm=True)

    def _clock_times(self, networks: Mapping[Any, nn.Module]) -> tuple[dict[Any, float], float]:
        return time_networks(networks, self.inputs, self._clock())


def planned(
    network: nn.Module,
    inputs: Inputs,
    select: Select,
    fold: str,
    origin: Origin | None = None,
    notes: tuple[str, ...] = (),
) -> ShrinkPlan:
    """Make the plan of a network whose weights are plain.

    Args:
        network: neither copied nor changed.
        inputs: the example.
        select: says which of its removable channels are left to be removed.
        fold: as for :func:`sparsemask.spaces.group_sparsity.shrinking.shrink`.
        origin: what the network was at first; None: this one.
        notes: what is to be known of every network made from it.

    Raises:
        UseError: a network that cannot be traced.
    """
    graph = trace(network, inputs.given, statistics_of(fold))
    every = removable(network, graph)
    channels = select(every)
    chosen = np.zeros(graph.count, dtype=bool)
    for c in channels:
        chosen[c.elements] = True
    free = np.zeros(graph.count, dtype=bool)
    for c in every:
        free[c.elements] = True
    locked = (
        *locked_layers(graph, ~free),
        *locked_layers(graph, free & ~chosen, "left out by name (only, skip)"),
    )
    counted = count_costs(network, inputs)
    if origin is None:
        widths = Accounting(network, graph, frozen=True).layers()
        origin = Origin(counted, widths, type(network).__name__)
    return ShrinkPlan(network, inputs, graph, channels, locked, counted, origin, select, fold, notes)


def statistics_of(fold: str) -> str:
    """How networks are traced for a treatment of constants."""
    return "free" if fold == "none" else "exact"
