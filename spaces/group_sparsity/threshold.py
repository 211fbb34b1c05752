"""Select the groups above a threshold, and search for the threshold that meets a target.

Hinge (Li et al., CVPR 2020, arXiv 2003.08935), section 3.4: one threshold nullifies groups in all matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

TOLERANCE = 1e-3  # largest difference between ratio and target that counts as met


def least_kept(count: int, share: float) -> int:
    """Return how many groups of a set always stay: a share of all, at least one."""
    return max(1, int(share * count))


def kept_groups(norms: np.ndarray, threshold: float, share: float = 0.2) -> np.ndarray:
    """Select the groups of one matrix that are kept.

    Kept are groups with a norm of at least the threshold (above it, if it is 0), and always the largest `share` of all
    groups, at least one; if fewer are above zero, the first ones fill up.

    Args:
        norms: (N,), at least 0.
        threshold: at least 0.
        share: minimum keep ratio, in [0, 1).

    Returns:
        Bool (N,).
    """
    norms = np.asarray(norms, dtype=np.float64)
    least = least_kept(len(norms), share)
    bound = np.partition(norms, -least)[-least]
    if bound == 0:
        kept = norms > 0
        kept[:least] = True
        return kept
    return norms >= min(bound, threshold) if threshold > 0 else norms > 0


def largest(norms: np.ndarray, count: int) -> np.ndarray:
    """Select the `count` largest groups and those equal to the smallest of them; bool (N,)."""
    norms = np.asarray(norms, dtype=np.float64)
    count = min(max(count, 1), len(norms))
    return norms >= np.partition(norms, -count)[-count]


def kept_sets(
    norms: Mapping[str, np.ndarray],
    threshold: float,
    share: float = 0.2,
    partners: Iterable[tuple[str, str]] = (),
) -> dict[str, np.ndarray]:
    """Apply :func:`kept_groups` to every set of groups.

    Args:
        norms: (N,) by set name.
        threshold: at least 0.
        share: minimum keep ratio of each set, in [0, 1).
        partners: pairs of set names (first, second) of equal sizes; the second keeps as many of its largest groups as
            the first (the published ``p1_p2_same_ratio``).

    Returns:
        Bool (N,) by set name.
    """
    kept = {name: kept_groups(values, threshold, share) for name, values in norms.items()}
    for first, second in partners:
        kept[second] = largest(norms[second], int(kept[first].sum()))
    return kept


@dataclass(frozen=True)
class ThresholdResult:
    """A threshold, the cost ratio that it gives and the target."""

    threshold: float
    ratio: float
    target: float

    @property
    def met(self) -> bool:
        """Whether the ratio is within :data:`TOLERANCE` of the target."""
        return abs(self.ratio - self.target) <= TOLERANCE


def find_threshold(
    ratio: Callable[[float], float], target: float, norms: Iterable[np.ndarray], below: bool = False
) -> ThresholdResult:
    """Find the threshold whose ratio is nearest to the target.

    Ties are broken by the smaller ratio, then by the lower threshold. The ratio is a step function of the threshold
    with steps at the groups' norms, so that bisection over the sorted norms finds the optimum (the published search
    uses fixed steps and may miss it).

    Args:
        ratio: threshold -> remaining cost over the cost without pruning; non-increasing.
        target: the desired ratio.
        norms: of every set.
        below: take the nearest ratio that does not exceed the target, if there is one (a budget).
    """
    values = np.unique(np.concatenate([np.asarray(n, dtype=np.float64).ravel() for n in norms]))
    # A threshold at a norm keeps that group: the next larger number drops it.
    points = np.concatenate([[0.0], np.nextafter(values, np.inf)])
    low, high = 0, len(points) - 1  # the ratio of low is above the target, that of high may be below
    known: dict[int, float] = {}

    def at(index: int) -> float:
        if index not in known:
            known[index] = ratio(float(points[index]))
        return known[index]

    if at(low) <= target:
        return ThresholdResult(float(points[low]), at(low), target)
    if at(high) > target:  # the minimum keep ratio is above the target
        floor = at(high)
        while low < high:  # find the lowest threshold with the same ratio
            middle = (low + high) // 2
            if at(middle) > floor:
                low = middle + 1
            else:
                high = middle
        return ThresholdResult(float(points[high]), floor, target)
    while high - low > 1:
        middle = (low + high) // 2
        if at(middle) > target:
            low = middle
        else:
            high = middle
    best = high if below or target - at(high) <= at(low) - target else low
    return ThresholdResult(float(points[best]), at(best), target)
