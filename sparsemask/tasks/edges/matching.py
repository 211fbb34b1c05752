"""Matching of predicted to true boundary pixels within a distance.

The Berkeley benchmark (Martin, Fowlkes, Malik 2004) assigns predicted to true pixels one to one at least cost: the
distance where it is within the tolerance, a hundred tolerances for a pixel that is left over. Leaving a pixel over
is thus never worth it, and the number of matched pixels is the greatest possible one. Here that number is found
exactly: pairs are taken nearest first, then the matching is enlarged to maximum cardinality by a maximum flow through
what is left. Enlarging never frees a pixel that has a partner. The counts against one annotator therefore equal the
benchmark's (as long as its own approximate solver finds the optimum); which of several equally many pixels they are
follows the nearest pairs, where the benchmark minimises the sum of the distances.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import breadth_first_order, maximum_flow

TOLERANCE = 0.0075  # of the image's diagonal, as in BSDS500


def tolerance(size: tuple[int, int], share: float = TOLERANCE) -> float:
    """The greatest distance of a match, in pixels, for an image of `size` (H, W)."""
    return share * float(np.hypot(*size))


def match(prediction: np.ndarray, truth: np.ndarray, distance: float) -> tuple[np.ndarray, np.ndarray]:
    """Match boundary pixels one to one, as many as possible, none farther apart than `distance` pixels.

    Args:
        prediction: bool (H, W).
        truth: bool (H, W).
        distance: in pixels.

    Returns:
        which pixels of `prediction` and of `truth` are matched: bool (H, W) each, equally many.
    """
    rim = int(distance)
    wide = prediction.shape[1] + 2 * rim
    predicted, true = (np.flatnonzero(np.pad(pixels, rim)) for pixels in (prediction, truth))
    number = np.full((prediction.shape[0] + 2 * rim) * wide, -1)
    number[true] = np.arange(len(true))
    near = number[predicted[:, None] + _steps(distance, wide)]  # (P, steps): the true pixel there, or -1
    partner, true_matched = _nearest_first(near, len(true))
    matched = partner >= 0
    _enlarge(near, partner, matched, true_matched)
    result = np.zeros_like(prediction), np.zeros_like(truth)
    result[0][prediction], result[1][truth] = matched, true_matched
    return result


def _steps(distance: float, wide: int) -> np.ndarray:
    """Offsets in a flat image of width `wide` to all pixels within `distance`, nearest first."""
    reach = int(distance)
    down, across = (offsets.ravel() for offsets in np.mgrid[-reach : reach + 1, -reach : reach + 1])
    away = np.hypot(down, across)
    order = np.lexsort((across, down, away))
    order = order[away[order] <= distance]
    return down[order] * wide + across[order]


def _nearest_first(near: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """(the true pixel each predicted one takes or -1, which true pixels are taken), step by step outwards.

    Within one step all pairs lie equally far apart and no pixel is in two of them.
    """
    partner, true_matched = np.full(len(near), -1), np.zeros(count, bool)
    free = np.arange(len(near))
    for step in range(near.shape[1]):
        candidate = near[free, step]
        hit = candidate >= 0
        hit[hit] = ~true_matched[candidate[hit]]
        partner[free[hit]] = candidate[hit]
        true_matched[candidate[hit]] = True
        free = free[~hit]
    return partner, true_matched


def _enlarge(near: np.ndarray, partner: np.ndarray, matched: np.ndarray, true_matched: np.ndarray) -> None:
    """Mark in `matched` and `true_matched` the pixels that a matching of maximum cardinality adds to `partner`'s."""
    predictions, truths = len(matched), len(true_matched)
    free, open_ = np.flatnonzero(~matched & (near >= 0).any(1)), np.flatnonzero(~true_matched)
    if not len(free) or not len(open_):
        return
    # Source 0, predictions, truths, sink. Matched pairs run backwards: a flow is a set of augmenting paths.
    row, step = np.nonzero(near >= 0)
    pixel = near[row, step]
    unused = partner[row] != pixel
    matched_rows = np.flatnonzero(matched)
    first, sink = 1 + predictions, 1 + predictions + truths
    tails = [np.zeros(len(free), int), 1 + row[unused], first + partner[matched_rows], first + open_]
    heads = [1 + free, first + pixel[unused], 1 + matched_rows, np.full(len(open_), sink)]
    tails, heads = np.concatenate(tails), np.concatenate(heads)
    graph = csr_matrix((np.ones(len(tails), np.int32), (tails, heads)), shape=(sink + 1, sink + 1))
    reached = np.sort(breadth_first_order(graph, 0, return_predecessors=False))
    if reached[-1] != sink:
        return
    flow = maximum_flow(graph[reached][:, reached], 0, len(reached) - 1).flow
    into, out = (np.asarray(flow[[row]].todense()).ravel() for row in (0, len(reached) - 1))
    matched[reached[into > 0] - 1] = True
    true_matched[reached[out < 0] - first] = True
