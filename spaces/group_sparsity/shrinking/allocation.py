"""Policies: how many channels each layer loses on the way from the whole network to the smallest one."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvNd

from sparsemask.errors import UseError, choose
from sparsemask.spaces.group_sparsity.shrinking import roofline
from sparsemask.spaces.group_sparsity.shrinking.channels import Channels, as_patterns, matches
from sparsemask.spaces.group_sparsity.tracing.graph import ChannelGraph

POLICIES = ("time", "uniform", "global", "isomorphic")
Policy = str | Mapping[str, float]
"""One of :data:`POLICIES`, or the share of channels that stays by pattern of layers' names."""

_WIDE = 64  # channels, from which on a quarter of a layer is a step small enough
_FINEST = 1e-5  # nearer levels are one
_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples modulo 1 are spread evenly


class Allocation:
    """Says which groups are kept at a *level* between 0 (all) and 1 (as few as allowed).

    A policy says whose groups are ranked together: those of one set ("uniform": every set loses the same share), of
    sets of the same structure ("isomorphic", Fang et al., arXiv 2407.04616: every kind of structure loses the same
    share), or all ("global"). At level x the lower x of every ranking go. With shares by pattern, sets keep share ** λ
    of their groups, λ = level / (1 - level): exactly the shares at level 0.5, and proportionally more or less (as
    logarithms) elsewhere. "time" are the shares of
    :mod:`sparsemask.spaces.group_sparsity.shrinking.roofline`.

    Args:
        network: whose layers make the channels.
        graph: its channels.
        channels: those that may be removed.
        scores: of each group, (count,) by name of the set.
        policy: see above; the first pattern that matches a layer counts, sets without one stay whole.
        minimum: groups of each set that always stay: a share below 1, or a number.
        multiple: channels of each set are kept in multiples of this number, as far as there are so many.
        narrow: whether sets of few channels are exempt: they take the largest power of two in the multiple of which
            they have eight, or of at least 64 channels four.

    Raises:
        UseError: an unknown policy, a pattern that matches nothing, numbers out of range.
    """

    def __init__(
        self,
        network: nn.Module,
        graph: ChannelGraph,
        channels: Sequence[Channels],
        scores: Mapping[str, np.ndarray],
        policy: Policy = "uniform",
        minimum: float = 0.1,
        multiple: int = 1,
        narrow: bool = False,
    ):
        if not minimum > 0 or (minimum >= 1 and int(minimum) != minimum):
            raise UseError(f"minimum: {minimum}; expected a share between 0 and 1, or a number of channels")
        if multiple < 1 or int(multiple) != multiple:
            raise UseError(f"multiple: {multiple}; expected a whole number such as 8")
        self.channels, self.scores = tuple(channels), dict(scores)
        self.minimum, self.multiple, self.narrow = minimum, int(multiple), narrow
        if isinstance(policy, str):
            choose(policy, POLICIES, "policy")
        if policy == "time":
            policy = roofline.shares(graph, channels)
        self._shares = _shares(channels, policy) if isinstance(policy, Mapping) else None
        self._pool = {c.name: _pool(network, c, policy) for c in channels}
        self.barred = {c.name: np.zeros(c.count, dtype=bool) for c in channels}
        self.held: Mapping[str, int] = {}
        """Groups that stay at every level, by name of the set."""
        self._rank()

    def bar(self, elements: np.ndarray) -> None:
        """Keep the groups of some elements of the channel graph, bool (graph.count,), at every level from now on."""
        for c in self.channels:
            self.barred[c.name] |= elements[c.elements]
        self._rank()

    def between(self, low: float, high: float, wanted: float) -> float | None:
        """Find a level whose groups are neither those of a lower nor those of a higher one.

        Args:
            low: the lower level.
            high: the higher one.
            wanted: between them.

        Returns:
            The wanted level, or the nearest one on the side where there are others; None where one step leads from the
            lower level to the higher one.
        """
        ends, count = [self._counts(low), self._counts(high)], self._counts(wanted)
        if count not in ends:
            return wanted
        beside, beyond = (wanted, high) if count == ends[0] else (wanted, low)
        while abs(beyond - beside) > _FINEST:
            middle = (beside + beyond) / 2
            beside, beyond = (middle, beyond) if self._counts(middle) == count else (beside, middle)
        return None if self._counts(beyond) in ends else beyond

    def hold(self, low: float, high: float) -> bool:
        """Let the sets that differ at two levels keep what they have at the lower one, at every level from now on.

        Where one step of a large set leads past a target, the others then have the rest to lose.

        Returns:
            Whether there are such sets, and others; if not, nothing is held.
        """
        before, after = self._counts(low), self._counts(high)
        differ = {name: count for name, count in before.items() if after[name] != count}
        held = {**self.held, **differ}
        if not differ or len(held) == len(self.channels):
            return False
        self.held = held
        return True

    def _counts(self, level: float) -> dict[str, int]:
        return {name: int(kept.sum()) for name, kept in self.kept(level).items()}

    def kept(self, level: float) -> dict[str, np.ndarray]:
        """Which groups are kept, bool (count,) by name of the set; no more at a higher level.

        Args:
            level: between 0 and 1.
        """
        result = {}
        for number, c in enumerate(self.channels):
            rank = self._ranks[c.name]
            wanted = int((rank >= self._cut(c.name, level)).sum())
            allowed = max(self._allowed(c, wanted, _offset(number)), self.held.get(c.name, 0))
            count = max(allowed, int(self.barred[c.name].sum()))
            result[c.name] = np.zeros(c.count, dtype=bool)
            result[c.name][np.argsort(-rank, kind="stable")[:count]] = True
        return result

    def _rank(self) -> None:
        """Rank the groups that may go, between 0 and 1 within their pool; the others are above all."""
        pools: dict[object, list[int]] = defaultdict(list)
        for number, c in enumerate(self.channels):
            pools[self._pool[c.name]].append(number)
        self._ranks = {c.name: np.full(c.count, np.inf) for c in self.channels}
        for numbers in pools.values():
            free = [~self.barred[self.channels[n].name] for n in numbers]
            values = [self.scores[self.channels[n].name][f] for n, f in zip(numbers, free, strict=True)]
            total = sum(map(len, values))
            order = np.empty(total)
            order[np.argsort(np.concatenate(values), kind="stable")] = np.arange(total)
            # Sets that are ranked alone lose their channels in turn, so that the cost changes in small steps.
            ranks = (order + _offset(numbers[0])) / max(total, 1)
            for n, f, part in zip(numbers, free, np.split(ranks, np.cumsum([*map(len, values)])[:-1]), strict=True):
                self._ranks[self.channels[n].name][f] = part

    def _cut(self, name: str, level: float) -> float:
        """Groups ranked below it go."""
        if self._shares is None:
            return level
        share = self._shares[name]
        return 0.0 if share == 1 else 1.0 if level >= 1 else 1 - share ** (level / (1 - level))

    def _allowed(self, c: Channels, wanted: int, offset: float) -> int:
        """The number of groups nearest to the wanted one that is a multiple and not below the minimum."""
        least = math.ceil(self.minimum * c.count) if self.minimum < 1 else int(self.minimum)
        count = max(wanted, least, 1)
        multiple, channels = self.multiple, c.count * c.groups.size
        while self.narrow and multiple > 1 and (4 if channels >= _WIDE else 8) * multiple > channels:
            multiple //= 2
        block = multiple // math.gcd(multiple, c.groups.size)
        if block > 1:
            count = max(block, int(count / block + offset) * block)
            count = max(count, -(-least // block) * block)
        return min(count, c.count)


def _offset(number: int) -> float:
    return ((number + 1) * _GOLDEN) % 1


def _pool(network: nn.Module, c: Channels, policy: Policy) -> object:
    if policy == "global":
        return None
    return _structure(network, c) if policy == "isomorphic" else c.name


def _structure(network: nn.Module, c: Channels) -> tuple[tuple[str, ...], ...]:
    """The kinds of layers that make and read channels; equal for sets of the same structure, whatever their sizes."""

    def kind(name: str) -> str:
        module = network.get_submodule(name)
        if not isinstance(module, _ConvNd):
            return type(module).__name__
        return f"{type(module).__name__} {module.kernel_size} {module.stride} {module.groups > 1}"

    return tuple(tuple(sorted(kind(m.module) for m in members)) for members in (c.makers, c.readers))


def _shares(channels: Sequence[Channels], policy: Mapping[str, float]) -> dict[str, float]:
    """The share of channels that stays, by name of the set."""
    as_patterns(tuple(policy), "policy", [member.module for c in channels for member in c.makers])
    for pattern, share in policy.items():
        if not 0 < share <= 1:
            raise UseError(f"policy: '{pattern}': {share}; expected the share of channels that stays, above 0 and to 1")
    return {
        c.name: next((s for p, s in policy.items() if any(matches(m.module, (p,)) for m in c.makers)), 1.0)
        for c in channels
    }
