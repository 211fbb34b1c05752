"""Inference by votes: overlapping crops of a cloud until every point was seen, averaged, carried to the full cloud."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from sparsemask.engine.data import plainly
from sparsemask.tasks.points.clouds.cloud import Cloud
from sparsemask.tasks.points.data import EvaluationCrops
from sparsemask.tasks.points.sampling import Pick, votes


class Votes:
    """Class probabilities of one cloud's points: p ← smooth · p + (1 - smooth) · softmax at every visit, from 0.

    As published, smooth is 0.95 for rooms and 0.98 for scans; only the order among classes matters afterwards.
    """

    def __init__(self, points: int, n_class: int, smooth: float):
        self.table, self.smooth = np.zeros((points, n_class), np.float32), smooth

    def add(self, indices: np.ndarray, probabilities: np.ndarray) -> None:
        """One crop: points' numbers (n,) and their probabilities (n, C); of a repeated point the last one counts."""
        self.table[indices] = self.smooth * self.table[indices] + (1 - self.smooth) * probabilities

    def decide(self, projection: np.ndarray | None) -> np.ndarray:
        """The likeliest class of every original point, int64 (N_original,)."""
        found = self.table.argmax(1)
        return found if projection is None else found[projection]


def crops_of(source: EvaluationCrops, numbers: list[int], until: float) -> Iterator[Pick]:
    """The votes on the given clouds, cloud after cloud, until the least possibility is above `until`."""
    tables = source.tables()
    for number in numbers:
        yield from votes(tables, number, until)
        tables.tables.pop(number, None)  # done: memory for one


@torch.no_grad()
def probabilities_of(model, crops, arithmetic) -> torch.Tensor:
    """Softmax (B, N, C) float32 on the CPU of a batch of crops."""
    logits = arithmetic.run(model, crops)
    return logits.float().softmax(1).transpose(1, 2).cpu()


def vote(
    model, source: EvaluationCrops, numbers: list[int], arithmetic,
    n_class: int, smooth: float, until: float = 0.5, batch: int = 1, workers: int = 0,
) -> Iterator[tuple[int, Cloud, np.ndarray]]:  # fmt: skip
    """Of each of the numbered clouds, as it is done: (number, cloud, classes (N_original,) of the original points)."""
    current, table = None, None
    for crops, _, indices, clouds in plainly(source.loader(crops_of(source, numbers, until), batch, workers)):
        found = probabilities_of(model, crops, arithmetic).numpy()
        for number, one, share in zip(clouds.tolist(), indices.numpy(), found, strict=True):
            if number != current:
                if table is not None:
                    yield _done(source, current, table)
                current, table = number, Votes(source.clouds.sizes[number], n_class, smooth)
            table.add(one, share)
    if table is not None:
        yield _done(source, current, table)


def _done(source: EvaluationCrops, number: int, table: Votes) -> tuple[int, Cloud, np.ndarray]:
    cloud = source.clouds[number]
    return number, cloud, table.decide(cloud.projection)
