"""From connection weights to a mask within a budget.

From all connections above the threshold those go first that have the smallest weight for what they cost: a connection,
a stage with all its inputs, or everything that reads the deepest end point in use, behind which the encoder is not
built. What a removal saves is the difference of two predictions, with the cleaning rules applied to both masks, and is
computed anew when it is about to decide. Near the budget every single removal that meets it is looked at, and the one
that keeps most weight remembered. At the end what still fits is taken back, heaviest first. This is done once for every
end point that may be the deepest in use, since one removal too many at that end cannot be undone connection
by connection; of the masks within the budget the one that keeps most weight is taken.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from sparsemask.errors import UseError
from sparsemask.masks import DOWN, UP, count_connections, why_unusable
from sparsemask.masks.decoder import deepest_end_point
from sparsemask.spaces.connectivity.budget import Budget, Costs
from sparsemask.spaces.connectivity.prune_rules import PruneReport, clean, halved, prune_report

_NEAR = 1.6  # times the budget: from here on single removals that meet it are looked at
Move = tuple[str, int, int, int]  # a connection (i, j, kind), all inputs of a stage, or all that reads an end point


@dataclass
class BudgetReport(PruneReport):
    """A mask within a budget and how it was obtained."""

    budget: Budget | None = None
    cost: float = math.nan  # of the mask
    before: float = math.nan  # of the mask at the threshold

    def lines(self) -> list[str]:
        """The report, for printing."""
        lines = super().lines()
        if self.budget is not None and not self.problem:
            lines.append(
                f"budget {self.budget.text()}: {self.budget.text(self.before)} at the threshold, "
                f"{self.budget.text(self.cost)} predicted for what is kept"
            )
        return lines


def prune_to_budget(
    weights: Sequence[np.ndarray | torch.Tensor] | np.ndarray,
    thres: float,
    budget: Budget,
    costs: Costs,
    rm_duplicate: bool = True,
    rm_subset: bool = True,
    repeat: bool = False,
) -> BudgetReport:
    """Turn connection weights into the mask that keeps most weight within a budget.

    Args:
        weights: L arrays or tensors, of shape (i+1, 2) for stage i, or one zero-padded (L, L, 2) array.
        thres: as in :func:`sparsemask.spaces.connectivity.prune_rules.prune_connectivity`, like the rules below.
        budget: the most that the mask's network may cost.
        costs: predicts what masks cost.
        rm_duplicate: merge stages with the same inputs.
        rm_subset: remove stages whose inputs and uses are subsets of another stage's.
        repeat: repeat the rules until nothing changes; always so once a connection is removed for the budget.

    Returns:
        The report; its mask is unusable where the threshold leaves no network.

    Raises:
        UseError: no mask of the connections above the threshold costs so little; the message says what the least is
            made of.
    """
    report = prune_report(weights, thres, rm_duplicate, rm_subset, repeat)
    fields = vars(report) | {"budget": budget}
    if report.problem:
        return BudgetReport(**fields)
    values, exists = halved(weights)
    decoder = _Decoder(values, report.mask, budget, costs, rm_duplicate, rm_subset)
    before = decoder.cost
    if before > budget.most:
        decoder.values = carried(values, (values > thres) & exists, report.mask)
        decoder = _heaviest(decoder, thres)
    mask = decoder.mask
    gone = [stage for stage in range(len(mask)) if report.mask[stage].any() and not mask[stage].any()]
    removed = [*report.removed, *((stage, "costs more than it weighs") for stage in gone)]
    found = BudgetReport(**{**fields, "removed": sorted(removed)})
    kept = values[mask & (values > 0)]
    smallest = float(kept.min()) if before > budget.most and kept.size else report.smallest_kept
    return replace(
        found, mask=mask, connections=count_connections(mask), smallest_kept=smallest, cost=decoder.cost, before=before
    )


def _heaviest(whole: _Decoder, thres: float) -> _Decoder:
    """Of the masks within the budget, one for each deepest end point, the one that keeps most weight."""
    found, begun = [], set()
    for deepest in range(len(whole.mask)):
        decoder = copy.copy(whole)
        if deepest:
            mask = whole.mask.copy()
            mask[:, :deepest, DOWN] = False
            mask[:, 0, UP] = False
            cleaned = whole.cleaned(mask)
            if cleaned is None:
                continue
            decoder.take(cleaned)
        if decoder.mask.tobytes() in begun:
            continue
        begun.add(decoder.mask.tobytes())
        try:
            decoder.reduce()
        except UseError as error:
            found.append((-1.0, error))
            continue
        decoder.fill(thres)
        found.append((float(decoder.values[decoder.mask].sum()), decoder))
    _, best = max(found, key=lambda entry: entry[0])
    if isinstance(best, UseError):
        raise found[0][1]
    return best


class _Decoder:
    """A mask that loses connections, with its cost."""

    def __init__(self, values: np.ndarray, mask: np.ndarray, budget: Budget, costs: Costs, *rules: bool):
        self.values, self.mask, self.budget, self.costs, self.rules = values, mask, budget, costs, rules
        self.cost = budget.cost(costs, mask)

    def cleaned(self, mask: np.ndarray) -> np.ndarray | None:
        """The mask after the cleaning rules; None where no network can be built from it."""
        mask = mask.copy()
        clean(mask, {}, *self.rules, repeat=True)
        while True:  # stages without inputs give none
            empty = ~np.logical_or.reduce(mask, axis=(1, 2))
            used = mask[:, 1:, UP].any(0) & empty[:-1]
            if not used.any():
                break
            mask[:, 1:, UP] &= ~used
            clean(mask, {}, *self.rules, repeat=True)
        return None if why_unusable(mask) else mask

    def moves(self) -> Iterator[Move]:
        """All that could be removed."""
        for i, j, kind in np.argwhere(self.mask).tolist():
            yield "connection", i, j, kind
        for i in range(len(self.mask) - 1):
            if self.mask[i].any():
                yield "stage", i, 0, 0
        for j in range(len(self.mask)):
            if self.mask[:, j, DOWN].any():
                yield "end point", 0, j, 0

    def without(self, move: Move) -> np.ndarray | None:
        """The mask after a move; None where it is none any more, or leaves no network."""
        kind, i, j, column = move
        mask = self.mask.copy()
        if kind == "connection":
            mask[i, j, column] = False
        elif kind == "stage":
            mask[i] = False
        elif j == deepest_end_point(self.mask):
            mask[:, j, DOWN] = False
            if j == 0:
                mask[:, 0, UP] = False
        if (mask == self.mask).all():
            return None
        return self.cleaned(mask)

    def score(self, move: Move) -> float:
        """Weight lost for what is saved; infinite where nothing is."""
        mask = self.without(move)
        if mask is None:
            return math.inf
        saved = self.cost - self.budget.cost(self.costs, mask)
        lost = self.values[self.mask].sum() - carried(self.values, self.mask, mask)[mask].sum()
        return float(max(lost, 0.0) / saved) if saved > 0 else math.inf

    def take(self, mask: np.ndarray) -> None:
        """Go on with another mask."""
        self.values = carried(self.values, self.mask, mask)
        self.mask, self.cost = mask, self.budget.cost(self.costs, mask)

    def reduce(self) -> None:
        """Remove connections until the budget is met; UseError where it cannot be."""
        order = itertools.count()
        heap = [(self.score(move), next(order), move, 0) for move in self.moves()]
        heapq.heapify(heap)
        begun, version, best = (self.mask, self.values), 0, self._met()
        while self.cost > self.budget.most and heap:
            score, _, move, scored_at = heapq.heappop(heap)
            if scored_at < version:
                # Others' scores are as stale; the first that stays in front decides.
                score = self.score(move)
                if heap and score > heap[0][0]:
                    if self.without(move) is not None:
                        heapq.heappush(heap, (score, next(order), move, version))
                    continue
            mask = self.without(move)
            if mask is None or math.isinf(score):
                continue
            self.take(mask)
            version += 1
            best = max(best, self._met(), key=lambda entry: entry[0])
        if best[0] > (self.values[self.mask].sum() if self.cost <= self.budget.most else 0):
            self.mask, self.values, self.cost = best[1:]
        if self.cost > self.budget.most:
            self.mask, self.values = begun
            self.take(self._smallest())

    def _met(self) -> tuple[float, np.ndarray, np.ndarray, float]:
        """Of single removals that meet the budget the one that keeps most: (weight, mask, values, cost); 0 for none."""
        best = (0.0, self.mask, self.values, self.cost)
        if not self.budget.most < self.cost <= _NEAR * self.budget.most:
            return best
        for move in self.moves():
            mask = self.without(move)
            if mask is None or (cost := self.budget.cost(self.costs, mask)) > self.budget.most:
                continue
            values = carried(self.values, self.mask, mask)
            best = max(best, (float(values[mask].sum()), mask, values, cost), key=lambda entry: entry[0])
        return best

    def _smallest(self) -> np.ndarray:
        """The heaviest single input of the output stage that is within the budget."""
        last, found = len(self.mask) - 1, []
        for j, kind in np.argwhere(self.mask[last]).tolist():
            if kind == DOWN or j == 0:
                mask = np.zeros_like(self.mask)
                mask[last, j, kind] = True
                found.append((self.budget.cost(self.costs, mask), -float(self.values[last, j, kind]), mask))
        fitting = [entry for entry in found if entry[0] <= self.budget.most]
        if fitting:
            return min(fitting, key=lambda entry: entry[1])[2]
        mask = min(found, key=lambda entry: entry[0])[2] if found else self.mask
        raise UseError(
            f"{self.budget.flag}: the least that the search's connections cost is "
            f"{self.budget.made_of(self.costs, mask)}; raise the budget, or search with {self.budget.flag}"
        )

    def fill(self, thres: float) -> None:
        """Take connections above the threshold back that fit, heaviest first."""
        possible = (self.values > thres) & np.tri(len(self.mask), dtype=bool)[..., None] & ~self.mask
        for i, j, kind in sorted(np.argwhere(possible).tolist(), key=lambda c: -self.values[tuple(c)]):
            live = self.mask[i].any() and (kind == DOWN or j == 0 or self.mask[j - 1].any())
            if not live:
                continue
            mask = self.mask.copy()
            mask[i, j, kind] = True
            cleaned = self.cleaned(mask)
            if cleaned is not None and (cleaned == mask).all():
                if self.budget.cost(self.costs, mask) <= self.budget.most:
                    self.take(mask)


def carried(values: np.ndarray, before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Weights of a mask in which stages were merged: a new use weighs what the heaviest use that it replaces did."""
    values = values.copy()
    for i, j, kind in np.argwhere(after & ~before).tolist():
        replaced = before[i, :, UP] & ~after[i, :, UP]
        if kind == UP and replaced.any():
            values[i, j, kind] = max(values[i, j, kind], values[i, replaced, UP].max())
    return values
