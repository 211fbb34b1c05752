"""Find the smaller network that meets a target: candidates are built, and what they really cost decides."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import numpy as np
from torch import nn

from sparsemask import costs
from sparsemask.spaces.group_sparsity.compression.accounting import Accounting
from sparsemask.spaces.group_sparsity.compression.border import Bordered, fix_borders
from sparsemask.spaces.group_sparsity.compression.compress import remove_groups
from sparsemask.spaces.group_sparsity.compression.removal import Removal
from sparsemask.spaces.group_sparsity.inputs import Inputs
from sparsemask.spaces.group_sparsity.shrinking.allocation import Allocation
from sparsemask.spaces.group_sparsity.shrinking.report import Costs
from sparsemask.spaces.group_sparsity.threshold import find_threshold
from sparsemask.timing import Timer, evaluating

NEAR = 0.03
"""Relative distance to a target of milliseconds that counts as met; shares have it in absolute terms."""
_LEVELS = np.linspace(0, 1, 4097)
_CLOSE = 0.003  # of a share; nearer than that nothing is tried any more
_TRIES = 6  # networks built for a share
_TIMED = 12  # networks built for milliseconds
_CONFIRMED = 2  # further measurements of one that meets the goal
_ROUNDS = 8


def count_costs(network: nn.Module, inputs: Inputs) -> Costs:
    """Executed multiply-adds for the inputs, maps of borders being constants, and parameters, frozen ones included."""
    if any(isinstance(module, Bordered) for module in network.modules()):
        network = fix_borders(copy.deepcopy(network), inputs.given)
    with evaluating(network):
        multiply_adds = costs.multiply_adds(lambda: inputs.run(network), ())
    return Costs(multiply_adds, costs.count_parameters(network))


@dataclass(frozen=True)
class Candidate:
    """A smaller network.

    Attributes:
        network: in the mode of the whole one.
        removed: elements of the channel graph that it lacks, bool (graph.count,).
        costs: counted.
    """

    network: nn.Module
    removed: np.ndarray
    costs: Costs


class Candidates:
    """Builds the networks of an allocation's levels.

    Channels whose constants cannot be folded keep their weights, and others go in their place. What was not known of
    them before is found when a network is built.

    Args:
        network: the whole network, not changed.
        inputs: for which it is counted.
        removal: from groups to elements.
        allocation: from levels to groups; its barred groups are completed.
        fold: as for :func:`sparsemask.spaces.group_sparsity.compression.compress.compress`.
        unfoldable: elements that are known to stay, bool (graph.count,).
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Inputs,
        removal: Removal,
        allocation: Allocation,
        fold: str,
        unfoldable: np.ndarray,
    ):
        self._network, self._inputs, self._removal, self._fold = network, inputs, removal, fold
        self.allocation = allocation
        self._accounting = Accounting(network, removal.graph, frozen=True)
        self.unfoldable = unfoldable.copy()
        """Elements that stay since their constants cannot be folded."""
        if unfoldable.any():
            allocation.bar(unfoldable)

    def predicted(self, level: float, by: str) -> int:
        """Cost at a level as the channel graph tells it: of convolutions and linear layers for one sample."""
        return self._counted(self._removal.gone(self.allocation.kept(level)), by)

    def counted(self, candidate: Candidate, by: str) -> int:
        """The same of a candidate."""
        return self._counted(candidate.removed, by)

    def at(self, level: float) -> Candidate:
        """Build the network of a level."""
        for last in (False, False, False, True):
            kept = self.allocation.kept(level)
            result = remove_groups(self._network, self._removal, kept, self._fold)
            removed = self._removal.graph.as_mask(result.removed)
            stays = self._removal.gone(kept) & ~removed
            self.unfoldable |= stays
            if last or not stays.any():
                break
            self.allocation.bar(stays)
        network = result.network
        return Candidate(network, removed, count_costs(network, self._inputs))

    def _counted(self, gone: np.ndarray, by: str) -> int:
        count = self._accounting.count(gone)
        return count.parameters if by == "parameters" else count.multiply_adds


def fit_share(candidates: Candidates, goal: float, by: str, now: Costs) -> Candidate:
    """Find the network whose multiply-adds or parameters are nearest to a number, as counted when it is built.

    Args:
        candidates: builds networks.
        goal: the number.
        by: "multiply-adds" or "parameters".
        now: costs of the whole network.
    """
    start = max(candidates.predicted(0.0, by), 1)
    slope = now.by(by) / start  # real cost over that of the graph, which counts one sample and no other operators
    best: Candidate | None = None
    tried = set()
    for _ in range(_TRIES):
        expected = lambda level, slope=slope: now.by(by) + slope * (candidates.predicted(level, by) - start)
        level = _level(candidates.allocation, expected, goal, NEAR * now.by(by))
        kept = b"".join(mask.tobytes() for mask in candidates.allocation.kept(level).values())
        if kept in tried:
            break
        tried.add(kept)
        candidate = candidates.at(level)
        reached, counted = candidate.costs.by(by), candidates.counted(candidate, by)
        if best is None or abs(reached - goal) < abs(best.costs.by(by) - goal):
            best = candidate
        if abs(reached - goal) <= _CLOSE * now.by(by):
            break
        if counted < start and reached < now.by(by):
            slope = (now.by(by) - reached) / (start - counted)
    assert best is not None
    return best


def _level(allocation: Allocation, expected: Callable[[float], float], goal: float, near: float) -> float:
    """The level of a cost; where one step leads past the cost by more than `near`, the others make up for it."""
    while True:
        level = find_threshold(expected, goal, [_LEVELS]).threshold
        low = level if expected(level) > goal else max(level - _LEVELS[1], 0.0)
        high, held = min(low + _LEVELS[1], 1.0), allocation.held
        if abs(expected(level) - goal) <= near or not allocation.hold(low, high):
            return level
        if expected(1.0) > goal:  # they cannot
            allocation.held = held
            return level


@dataclass(frozen=True)
class Choice:
    """A network for a target.

    Attributes:
        candidate: the network.
        unfoldable: elements of the graph that could not be folded.
        distance: from the target; 1 and less counts as met.
        notes: what is to be said of it.
        times: milliseconds of the whole and of this network, where they were measured.
    """

    candidate: Candidate
    unfoldable: np.ndarray
    distance: float
    notes: tuple[str, ...] = ()
    times: tuple[float, float] | None = None


@dataclass(frozen=True)
class Fitted:
    """A candidate whose time was measured.

    Attributes:
        candidate: the network.
        milliseconds: its time.
        whole: time of the whole network.
        least: time of the smallest network that the allocation has.
        busy: how busy the machine was at most, see :class:`sparsemask.timing.Timer`.
    """

    candidate: Candidate
    milliseconds: float
    whole: float
    least: float
    busy: float


class Stopwatch:
    """Times of networks as shares of the whole one's, which is timed in the same rounds.

    A change of the machine's speed meets both. The share is the median over what was measured of a network, and the
    whole network's time the least that was.

    Args:
        network: the whole one.
        inputs: of all networks.
        clock: times functions in turn.
    """

    def __init__(self, network: nn.Module, inputs: Inputs, clock: Timer):
        self._network, self._inputs, self._clock = network, inputs, clock
        self._shares: dict[int, list[float]] = {}
        self.whole, self.busy = float("inf"), 1.0

    def measure(self, networks: Mapping[int, nn.Module]) -> None:
        """Time some networks, by their numbers, in turn with the whole one."""
        every: list[tuple[Hashable, nn.Module]] = [("whole", self._network), *networks.items()]
        times, busy = time_networks(dict(every), self._inputs, self._clock)
        self.busy, self.whole = max(self.busy, busy), min(self.whole, times["whole"])
        for number in networks:
            self._shares.setdefault(number, []).append(times[number] / times["whole"])

    def __getitem__(self, number: int) -> float:
        """Milliseconds of a network that was measured."""
        return float(np.median(self._shares[number])) * self.whole


def fit_time(candidates: Candidates, goal: float, network: nn.Module, inputs: Inputs, clock: Timer) -> Fitted:
    """Find the network that takes a number of milliseconds, as measured.

    Levels are bracketed and interpolated; a candidate is timed beside the two that bracket it, and once more by itself
    where it meets the goal. Where a single step leads past the goal, such as of channels that many layers share, these
    channels stay as they are before it, and the other layers make up for it.

    Args:
        candidates: builds networks.
        goal: milliseconds.
        network: the whole one.
        inputs: of all networks.
        clock: times functions in turn.
    """
    watch, allocation = Stopwatch(network, inputs, clock), candidates.allocation
    built: list[Candidate] = []

    def build(level: float) -> int:
        built.append(candidates.at(level))
        return len(built) - 1

    def missed(number: int) -> float:
        return abs(watch[number] - goal) / goal

    slow, fast = 0.0, 1.0
    numbers = {slow: build(slow), fast: build(fast)}
    watch.measure({n: built[n].network for n in numbers.values()})
    least = numbers[fast]
    while watch[numbers[fast]] < goal < watch[numbers[slow]] and len(built) < _TIMED:
        share = (watch[numbers[slow]] - goal) / max(watch[numbers[slow]] - watch[numbers[fast]], 1e-9)
        level = allocation.between(slow, fast, slow + (fast - slow) * min(max(share, 0.05), 0.95))
        if level is None:
            if min(map(missed, numbers.values())) <= NEAR / 2 or not allocation.hold(slow, fast):
                break
            fast = 1.0
            numbers[fast] = build(fast)
            watch.measure({numbers[fast]: built[numbers[fast]].network})
            continue
        number = numbers[level] = build(level)
        watch.measure({n: built[n].network for n in (numbers[slow], numbers[fast], number)})
        if missed(number) <= NEAR / 2:
            for _ in range(_CONFIRMED):  # what met the goal by chance of the moment does not stand
                watch.measure({number: built[number].network})
            if missed(number) <= NEAR / 2:
                break
        slow, fast = (level, fast) if watch[number] > goal else (slow, level)
    best = min(range(len(built)), key=missed)
    return Fitted(built[best], watch[best], watch.whole, watch[least], watch.busy)


def time_networks(
    networks: Mapping[Hashable, nn.Module], inputs: Inputs, clock: Timer
) -> tuple[dict[Hashable, float], float]:
    """Milliseconds of networks in evaluation mode that are called in turn, by key, and how busy the machine was."""

    def call(network: nn.Module) -> Callable[[], object]:
        return lambda: inputs.run(network)

    with contextlib.ExitStack() as stack:
        for network in networks.values():
            stack.enter_context(evaluating(network))
        return clock({key: call(network) for key, network in networks.items()}, _ROUNDS)
