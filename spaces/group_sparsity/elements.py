"""Channel elements: numbered channels, their equivalence classes, and which of them are locked."""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components


class Elements:
    """A growing set of channels. Ties and locks are collected first and resolved together at the end."""

    def __init__(self) -> None:
        self.count = 0
        self._ties: list[tuple[np.ndarray, np.ndarray]] = []
        self._locks: list[tuple[np.ndarray, str]] = []

    def fresh(self, count: int, reason: str | None = None) -> np.ndarray:
        """Create `count` elements and return their numbers, (count,) int64; locked if a reason is given."""
        numbers = np.arange(self.count, self.count + count)
        self.count += count
        if reason:
            self.lock(numbers, reason)
        return numbers

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        """Require that entry i of `a` and entry i of `b` are removed together; either may be a single element."""
        a, b = np.broadcast_arrays(a, b)
        self._ties.append((a, b))

    def lock(self, elements: np.ndarray, reason: str) -> None:
        """Forbid to remove these elements; of several reasons the first is reported."""
        self._locks.append((np.asarray(elements), reason))

    def resolve(self) -> tuple[np.ndarray, list[str | None]]:
        """Return the class of every element, (count,) int64 from 0, and for every class why it is locked, or None."""
        if self._ties:
            a, b = (np.concatenate(side) for side in zip(*self._ties, strict=True))
        else:
            a = b = np.zeros(0, np.int64)
        links = coo_matrix((np.ones(len(a), np.int8), (a, b)), shape=(self.count, self.count))
        number, classes = connected_components(links, directed=False)
        reasons: list[str | None] = [None] * number
        for elements, reason in reversed(self._locks):
            for c in np.unique(classes[elements]):
                reasons[c] = reason
        return classes.astype(np.int64), reasons
