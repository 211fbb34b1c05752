"""What networks on point clouds take: features, and who is whose neighbour on every level."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class PointBatch:
    """B crops of N points, in random order: level l + 1 is the first points of level l.

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
        """Where it lies."""
        return self.features.device

    @property
    def sizes(self) -> list[int]:
        """Points of every level, fine to coarse."""
        return [one.shape[1] for one in self.neighbours]

    def __len__(self) -> int:
        return len(self.features)

    def to(
        self, device: torch.device | str, dtype: torch.dtype | None = None, non_blocking: bool = False
    ) -> PointBatch:
        """On another device, the features in another type; indices stay integers."""
        return replace(
            self,
            features=self.features.to(device, dtype, non_blocking=non_blocking),
            neighbours=[one.to(device, non_blocking=non_blocking) for one in self.neighbours],
            upsample=[one.to(device, non_blocking=non_blocking) for one in self.upsample],
        )

    def pin_memory(self) -> PointBatch:
        """In page-locked memory, for a data loader."""
        return replace(
            self,
            features=self.features.pin_memory(),
            neighbours=[one.pin_memory() for one in self.neighbours],
            upsample=[one.pin_memory() for one in self.upsample],
        )

    @staticmethod
    def collate(samples: Sequence[PointBatch]) -> PointBatch:
        """One batch of batches whose clouds have one size."""
        levels = range(len(samples[0].neighbours))
        return PointBatch(
            torch.cat([one.features for one in samples]),
            [torch.cat([one.neighbours[level] for one in samples]) for level in levels],
            [torch.cat([one.upsample[level] for one in samples]) for level in levels[:-1]],
        )
