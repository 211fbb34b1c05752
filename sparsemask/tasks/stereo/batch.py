"""Input of stereo networks: left and right images, rectified and normalised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class StereoPair:
    """B pairs of one size.

    Attributes:
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
        """Device of the tensors."""
        return self.left.device

    def __len__(self) -> int:
        return len(self.left)

    def map(self, function: Callable[[Tensor], Tensor]) -> StereoPair:
        """Apply a function to both images."""
        return StereoPair(function(self.left), function(self.right))

    def to(
        self, device: torch.device | str, dtype: torch.dtype | None = None, non_blocking: bool = False
    ) -> StereoPair:
        """On another device, in another type."""
        return self.map(lambda image: image.to(device, dtype, non_blocking=non_blocking))

    def pin_memory(self) -> StereoPair:
        """In page-locked memory, for a data loader."""
        return self.map(Tensor.pin_memory)

    @staticmethod
    def collate(samples: Sequence[StereoPair]) -> StereoPair:
        """One batch of batches of one size."""
        return StereoPair(torch.cat([pair.left for pair in samples]), torch.cat([pair.right for pair in samples]))
