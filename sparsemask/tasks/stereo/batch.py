"""Input of stereo networks: left and right images, rectified and normalised; crops, padding to multiples of 16."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of values of 0 to 1
MULTIPLE = 16  # of both sides: a quarter in the volume, and two more halvings in its hourglasses


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


def normalise(image: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) as float32 (1, 3, H, W) with ImageNet's mean and deviation."""
    values = (image.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(DEVIATION)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]


def picture_of(tensor: Tensor) -> np.ndarray:
    """The image uint8 (H, W, 3) of a normalised one (3, H, W)."""
    values = tensor.detach().cpu().float().permute(1, 2, 0).numpy() * np.float32(DEVIATION) + np.float32(MEAN)
    return np.rint(255 * values).clip(0, 255).astype(np.uint8)


def make_pair(left: np.ndarray, right: np.ndarray) -> StereoPair:
    """A batch of one of two images uint8 (H, W, 3)."""
    return StereoPair(normalise(left), normalise(right))


def pad_to(values: Tensor, height: int, width: int) -> Tensor:
    """Pad (..., H, W) with zeros at the top and on the right to at least a size."""
    return F.pad(values, (0, max(0, width - values.shape[-1]), max(0, height - values.shape[-2]), 0))


def pad16(pair: StereoPair) -> StereoPair:
    """A pair with zeros at the top and on the right, so that both sides are multiples of 16 (as GwcNet tests)."""
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in pair.shape[-2:])
    return pair.map(lambda image: pad_to(image, height, width))


def unpad(values: Tensor, height: int, width: int) -> Tensor:
    """Remove the padding of :func:`pad16` from (..., H, W): the lower left part of a size."""
    return values[..., values.shape[-2] - height :, :width]


def random_crop(pair: StereoPair, truth: Tensor, size: tuple[int, int], rng: np.random.Generator):
    """Cut the same random window from both images and the truth.

    Smaller pairs are padded at the top and on the right, the truth with 0 (no value).

    Args:
        pair: images (B, 3, H, W).
        truth: disparities (1, H, W) in pixels.
        size: (height, width) of the window.
        rng: draws the position.

    Returns:
        (pair, truth) of the window.
    """
    pair, truth = pair.map(lambda image: pad_to(image, *size)), pad_to(truth, *size)
    top, left = (int(rng.integers(side - most + 1)) for side, most in zip(pair.shape[-2:], size, strict=True))
    window = (..., slice(top, top + size[0]), slice(left, left + size[1]))
    return pair.map(lambda image: image[window].contiguous()), truth[window].contiguous()
