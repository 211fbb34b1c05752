"""Pictures to tensors and back: normalisation, crops, padding to multiples of 16."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.tasks.stereo.batch import StereoPair

MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet's, of values of 0 to 1
MULTIPLE = 16  # of both sides: a quarter in the volume, and two more halvings in its hourglasses


def normalise(picture: np.ndarray) -> Tensor:
    """uint8 (H, W, 3) as float32 (1, 3, H, W) with ImageNet's mean and deviation."""
    values = (picture.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(DEVIATION)
    return torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]


def picture_of(tensor: Tensor) -> np.ndarray:
    """The picture uint8 (H, W, 3) of a normalised one (3, H, W)."""
    values = tensor.detach().cpu().float().permute(1, 2, 0).numpy() * np.float32(DEVIATION) + np.float32(MEAN)
    return np.rint(255 * values).clip(0, 255).astype(np.uint8)


def make_pair(left: np.ndarray, right: np.ndarray) -> StereoPair:
    """A batch of one of two pictures uint8 (H, W, 3)."""
    return StereoPair(normalise(left), normalise(right))


def pad_to(values: Tensor, height: int, width: int) -> Tensor:
    """(..., H, W) with zeros at the top and on the right up to a size; left as it is where it is as large."""
    return F.pad(values, (0, max(0, width - values.shape[-1]), max(0, height - values.shape[-2]), 0))


def pad16(pair: StereoPair) -> StereoPair:
    """A pair with zeros at the top and on the right, so that both sides are multiples of 16 (as GwcNet tests)."""
    height, width = (-(-side // MULTIPLE) * MULTIPLE for side in pair.shape[-2:])
    return pair.map(lambda picture: pad_to(picture, height, width))


def unpad(values: Tensor, height: int, width: int) -> Tensor:
    """(..., H, W) of a padded pair as it lies in the pair before padding: the lower left part."""
    return values[..., values.shape[-2] - height :, :width]


def random_crop(pair: StereoPair, truth: Tensor, size: tuple[int, int], rng: np.random.Generator):
    """A window of `size` (height, width) at random, the same of both pictures and the truth (1, H, W).

    Smaller pairs are padded at the top and on the right, the truth with 0: no value.
    """
    pair, truth = pair.map(lambda one: pad_to(one, *size)), pad_to(truth, *size)
    top, left = (int(rng.integers(side - most + 1)) for side, most in zip(pair.shape[-2:], size, strict=True))
    window = (..., slice(top, top + size[0]), slice(left, left + size[1]))
    return pair.map(lambda one: one[window].contiguous()), truth[window].contiguous()
