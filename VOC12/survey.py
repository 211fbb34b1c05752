"""Classes that occur in labels: labels of one class are refused before training, absent classes are named."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from sparsemask.VOC12.palette import IGNORE

LIMIT = 1000  # labels looked at where some class has not been seen yet
_NAMED = 10  # absent classes that are named, the others counted


@dataclass
class Survey:
    """Values that occur in labels.

    Attributes:
        total: number of labels.
        looked: number of labels read.
        seen: bool (256,), the values that occur; 255 is ignored.
        items: what labels are called in messages.
    """

    total: int
    looked: int = 0
    seen: np.ndarray = field(default_factory=lambda: np.zeros(256, bool))
    items: str = "labels"

    def add(self, label: np.ndarray) -> None:
        """Count a uint8 label."""
        self.looked += 1
        self.seen[label] = True

    @property
    def classes(self) -> list[int]:
        """The classes that occur."""
        return np.flatnonzero(self.seen[:IGNORE]).tolist()

    def labels(self, which: str = "") -> str:
        """'the 12 training labels', or 'the 1000 looked at of 4000 training labels'."""
        of = " ".join(filter(None, (str(self.total), which, self.items)))
        return f"the {of}" if self.looked >= self.total else f"the {self.looked} looked at of {of}"

    def unlabelled(self, which: str = "", ignored: int = IGNORE) -> str | None:
        """Message where no pixel has a class; None otherwise."""
        if self.classes:
            return None
        return f"no pixel has a class in {self.labels(which)}: all are {ignored}, ignored"

    def single(self, classes: Sequence[str], which: str = "") -> str | None:
        """Message where a single class occurs; None otherwise."""
        if len(self.classes) != 1 or self.classes[0] >= len(classes):
            return None
        [number] = self.classes
        return f"one class alone occurs in {self.labels(which)} ({_called(number, classes)}): nothing to tell apart"

    def masks(self) -> str | None:
        """Advice where the only values are 0 and 255; None otherwise."""
        if self.classes != [0] or not self.seen[IGNORE]:
            return None
        return (
            "the only values are 0 and 255, as in 0/255 masks, but 255 is ignored: write 1 in its place, "
            "or use --task saliency, which reads such masks as they are"
        )

    def absent(self, classes: Sequence[str], which: str = "") -> str | None:
        """A line that names the classes that never occur; None where all do."""
        gone = [_called(number, classes) for number in range(len(classes)) if not self.seen[number]]
        if not gone:
            return None
        listed = ", ".join(gone[:_NAMED]) + (f" and {len(gone) - _NAMED} more" if len(gone) > _NAMED else "")
        never = "never occur" if len(gone) > 1 else "never occurs"
        return f"{len(gone)} of {len(classes)} classes {never} in {self.labels(which)}: {listed}"


def _called(number: int, classes: Sequence[str]) -> str:
    """A class by number and name; by the latter alone where that is 'class NUMBER'."""
    return classes[number] if classes[number] == f"class {number}" else f"{number} {classes[number]}"


def survey(
    paths: Sequence, read: Callable[..., np.ndarray], n_class: int, limit: int = LIMIT, items: str = "labels"
) -> Survey:
    """Look at labels, spread over the list, until every class has been seen.

    Args:
        paths: the labels, by path or by number; repeated ones are looked at once.
        read: gives the class indices of one, uint8 of any shape, 255 where ignored; what it raises is passed on.
        n_class: number of classes.
        limit: no more labels than that, as long as two classes have been seen.
        items: what labels are called in messages.
    """
    paths = list(dict.fromkeys(paths))
    result = Survey(len(paths), items=items)
    spread = np.unique(np.linspace(0, len(paths) - 1, min(limit, len(paths))).astype(int)).tolist()
    later = sorted(set(range(len(paths))) - set(spread))
    for number, index in enumerate([*spread, *later]):
        if number >= len(spread) and len(result.classes) > 1:
            break
        result.add(read(paths[index]))
        if result.seen[:n_class].all():
            result.looked = result.total  # nothing is absent, whatever the others hold
            break
    return result
