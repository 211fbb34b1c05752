"""Input of networks on point clouds: features, and neighbour indices on every level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class PointBatch:
    """B crops of N points, in random order: level l + 1 is the first points of level l.

    Attributes:
        features: (B, d_in, N) float, the first three channels x, y, z in metres.
        neighbours: for every level, fine to coarse, (B, N_l, K) int32; column 0 is the point itself.
        upsample: coarse to fine, (B, N_l) int32: of every point of a level the nearest one of the coarser level.
    """

    features: Tensor
    neighbours: Sequence[Tensor]
    upsample: Sequence[Tensor]

    @property
    def shape(self) -> torch.Size:
        """(B, d_in, N)."""
        return self.features.shape

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.features.device

    @property
    def sizes(self) -> list[int]:
        """Points of every level, fine to coarse."""
        return [indices.shape[1] for indices in self.neighbours]

    def __len__(self) -> int:
        return len(self.features)

    def to(
        self, device: torch.device | str, dtype: torch.dtype | None = None, non_blocking: bool = False
    ) -> PointBatch:
        """On another device, the features in another type; indices stay integers."""
        return replace(
            self,
            features=self.features.to(device, dtype, non_blocking=non_blocking),
            neighbours=[indices.to(device, non_blocking=non_blocking) for indices in self.neighbours],
            upsample=[indices.to(device, non_blocking=non_blocking) for indices in self.upsample],
        )

    def pin_memory(self) -> PointBatch:
        """In page-locked memory, for a data loader."""
        return replace(
            self,
            features=self.features.pin_memory(),
            neighbours=[indices.pin_memory() for indices in self.neighbours],
            upsample=[indices.pin_memory() for indices in self.upsample],
        )

    @staticmethod
    def collate(samples: Sequence[PointBatch]) -> PointBatch:
        """One batch of batches whose clouds have one size."""
        levels = range(len(samples[0].neighbours))
        return PointBatch(
            torch.cat([batch.features for batch in samples]),
            [torch.cat([batch.neighbours[level] for batch in samples]) for level in levels],
            [torch.cat([batch.upsample[level] for batch in samples]) for level in levels[:-1]],
        )
