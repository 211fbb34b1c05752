"""Which groups of weights stay at a threshold, and which threshold meets a target.

Hinge (Li et al., CVPR 2020, arXiv 2003.08935), section 3.4: one threshold nullifies groups in all matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

TOLERANCE = 1e-3  # of a ratio: what counts as met


def kept_groups(norms: np.ndarray, threshold: float, share: float = 0.2) -> np.ndarray:
    """Which groups of one matrix stay, bool (N,).

    Those with a norm of at least the threshold (above it, where that is 0), and in any case the largest `share` of
    all, at least one; where fewer than so many are above zero, the first ones fill up.

    Args:
        norms: (N,), at least 0.
        threshold: at least 0.
        share: in [0, 1).
    """
    norms = np.asarray(norms, dtype=np.float64)
    least = max(1, int(share * len(norms)))
    bound = np.partition(norms, -least)[-least]
    if bound == 0:
        kept = norms > 0
        kept[:least] = True
        return kept
    return norms >= min(bound, threshold) if threshold > 0 else norms > 0


def largest(norms: np.ndarray, count: int) -> np.ndarray:
    """The `count` largest groups, and those as large as the smallest of them; bool (N,)."""
    norms = np.asarray(norms, dtype=np.float64)
    count = min(max(count, 1), len(norms))
    return norms >= np.partition(norms, -count)[-count]


def kept_sets(
    norms: Mapping[str, np.ndarray],
    threshold: float,
    share: float = 0.2,
    partners: Iterable[tuple[str, str]] = (),
) -> dict[str, np.ndarray]:
    """:func:`kept_groups` of every set of groups, by name.

    partners: pairs of names (first, second) of equal counts; the second keeps as many of its largest as the first
    does (the published ``p1_p2_same_ratio``).
    """
    kept = {name: kept_groups(values, threshold, share) for name, values in norms.items()}
    for first, second in partners:
        kept[second] = largest(norms[second], int(kept[first].sum()))
    return kept


@dataclass(frozen=True)
class Found:
    """A threshold, the ratio it gives, and whether that is the target."""

    threshold: float
    ratio: float
    target: float

    @property
    def met(self) -> bool:
        """Whether the ratio is the target, to :data:`TOLERANCE`."""
        return abs(self.ratio - self.target) <= TOLERANCE


def find_threshold(
    ratio: Callable[[float], float], target: float, norms: Iterable[np.ndarray], below: bool = False
) -> Found:
    """The threshold whose ratio is nearest to the target; of two as near the smaller ratio, of equal ones the lowest.

    The ratio falls in steps as the threshold passes the groups' norms, so that halving the list of norms finds the
    best of all thresholds (the published search walks in steps of its own and may stop beside it).

    Args:
        ratio: threshold -> what then remains, over what there is without pruning; must not rise.
        target: the ratio wanted.
        norms: of every set.
        below: the nearest of those that do not exceed the target, where there are any (a budget).
    """
    every = np.unique(np.concatenate([np.asarray(n, dtype=np.float64).ravel() for n in norms]))
    # A threshold at a norm keeps that group: the next larger number drops it.
    points = np.concatenate([[0.0], np.nextafter(every, np.inf)])
    low, high = 0, len(points) - 1  # the ratio of low is above the target, that of high may be below
    known: dict[int, float] = {}

    def at(index: int) -> float:
        if index not in known:
            known[index] = ratio(float(points[index]))
        return known[index]

    if at(low) <= target:
        return Found(float(points[low]), at(low), target)
    if at(high) > target:  # the share that always stays is above the target
        floor = at(high)
        while low < high:  # the lowest threshold that does as much
            middle = (low + high) // 2
            if at(middle) > floor:
                low = middle + 1
            else:
                high = middle
        return Found(float(points[high]), floor, target)
    while high - low > 1:
        middle = (low + high) // 2
        if at(middle) > target:
            low = middle
        else:
            high = middle
    best = high if below or target - at(high) <= at(low) - target else low
    return Found(float(points[best]), at(best), target)
