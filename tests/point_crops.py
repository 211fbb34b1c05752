"""Small random crops with their neighbour lists."""

from __future__ import annotations

import numpy as np
import torch

from sparsemask.tasks.points.clouds.batch import PointBatch
from sparsemask.tasks.points.clouds.graph import build_graph


def crop(count: int = 128, d_in: int = 6, k: int = 8, levels: int = 3, samples: int = 1, seed: int = 0) -> PointBatch:
    """Crops of points in the unit cube."""
    made = []
    for number in range(samples):
        features = np.random.default_rng(seed + number).random((count, d_in), np.float32)
        neighbours, upsample = build_graph(features[:, :3], k, 4, levels)
        made.append(
            PointBatch(
                torch.from_numpy(np.ascontiguousarray(features.T))[None],
                [torch.from_numpy(one)[None] for one in neighbours],
                [torch.from_numpy(one)[None] for one in upsample],
            )
        )
    return PointBatch.collate(made)


def part(batch: PointBatch, number: int) -> PointBatch:
    """One sample of a batch."""
    one = slice(number, number + 1)
    return PointBatch(
        batch.features[one], [index[one] for index in batch.neighbours], [index[one] for index in batch.upsample]
    )
