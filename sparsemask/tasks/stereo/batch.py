"""What stereo networks take: left and right pictures, rectified and normalised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StereoPair:
    """B pairs of one size.

    left, right: (B, 3, H, W) float, RGB, each channel less ImageNet's mean and over its deviation.
    """

    left: Tensor
    right: Tensor

    @property
    def shape(self) -> torch.Size:
        """(B, 3, H, W)."""
        return self.left.shape

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.left.device

    def __len__(self) -> int:
        return len(self.left)

    def map(self, function: Callable[[Tensor], Tensor]) -> StereoPair:
        """The same done to both pictures."""
        return StereoPair(function(self.left), function(self.right))

    def to(
        self, device: torch.device | str, dtype: torch.dtype | None = None, non_blocking: bool = False
    ) -> StereoPair:
        """On another device, in another type."""
        return self.map(lambda picture: picture.to(device, dtype, non_blocking=non_blocking))

    def pin_memory(self) -> StereoPair:
        """In page-locked memory, for a data loader."""
        return self.map(Tensor.pin_memory)

    @staticmethod
    def collate(samples: Sequence[StereoPair]) -> StereoPair:
        """One batch of batches of one size."""
        return StereoPair(*(torch.cat([getattr(one, side) for one in samples]) for side in ("left", "right")))
