"""Scale, pad, crop, flip and normalise, computing only the pixels of the crop.

Equal to resizing the whole image, padding it and cropping, with less work. Bilinear
resampling is the plain two-tap kind with half-pixel centres (OpenCV's INTER_LINEAR, torch's bilinear with
align_corners=False), without anti-aliasing, as the published protocol has it; labels take the nearest pixel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sparsemask.VOC12.palette import IGNORE

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


@dataclass(frozen=True)
class Colours:
    """Mean and deviation of each channel, for values in [0, 1]."""

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def normalise(self, image: np.ndarray) -> torch.Tensor:
        """(value / 255 - mean) / std of an image uint8 (H, W, 3), float32 (3, H, W)."""
        gain = torch.tensor([1 / (255 * s) for s in self.std])
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)])
        planes = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
        values = planes.to(torch.float32, memory_format=torch.contiguous_format)
        return values.mul_(gain[:, None, None]).add_(shift[:, None, None])


IMAGENET = Colours()


@dataclass(frozen=True)
class View:
    """One draw of the augmentation, for an image of a known size."""

    scale: float
    top: int  # of the crop, in the scaled and padded image
    left: int
    flip: bool


def scaled_size(size: int, scale: float) -> int:
    """Size in pixels after scaling, rounded half up, at least 1."""
    return max(1, int(size * scale + 0.5))


def draw_view(size: tuple[int, int], crop: int, scales: tuple[float, ...], rng: np.random.Generator) -> View:
    """Draw the scale, the crop's position and the flip of one augmentation; always four draws from `rng`.

    Args:
        size: (H, W) of the image.
        crop: side of the square crop, in pixels.
        scales: of which one is drawn.
        rng: source of the draws.
    """
    scale = float(scales[rng.integers(len(scales))])
    top, left = (int(rng.integers(max(scaled_size(n, scale) - crop, 0) + 1)) for n in size)
    return View(scale, top, left, bool(rng.random() < 0.5))


class _Axis:
    """One axis of a view: which part of the crop the image covers, and where that part comes from."""

    def __init__(self, size: int, scale: float, crop: int, start: int, flip: bool = False) -> None:
        scaled = scaled_size(size, scale)
        count = min(scaled, crop)
        offset = (crop - count) // 2  # padding is centred, and only there where the image is smaller
        position = np.arange(start, start + count)
        if flip:
            position, offset = position[::-1], crop - offset - count
        self.part = slice(offset, offset + count)
        # Twice the centre of output pixel i is the whole number 2 i + 1: whole numbers make nearest exact.
        nearest = (2 * position + 1) * size // (2 * scaled)
        centre = ((position + 0.5) * (size / scaled) - 0.5).clip(0, size - 1)
        low = centre.astype(np.int64)
        self.begin = int(min(low.min(), nearest.min()))
        self.end = int(max(min(low.max() + 2, size), nearest.max() + 1))
        self.nearest = torch.from_numpy(nearest - self.begin)
        self.low = torch.from_numpy(low - self.begin)
        self.high = torch.from_numpy(np.minimum(low + 1, size - 1) - self.begin)
        self.weight = torch.from_numpy((centre - low).astype(np.float32))

    @property
    def identity(self) -> bool:
        return not bool(self.weight.any())


def augment(
    image: np.ndarray, label: np.ndarray, view: View, crop: int, colours: Colours = IMAGENET
) -> tuple[torch.Tensor, torch.Tensor]:
    """Show `view` of an image and its label.

    Args:
        image: uint8 (H, W, 3).
        label: uint8 (H, W).
        view: what to show.
        crop: side of the square result in pixels.
        colours: how the image is normalised.

    Returns:
        float32 (3, crop, crop), normalised, 0 (the mean) where padded; int64 (crop, crop), 255 where padded.
    """
    height, width = label.shape
    rows = _Axis(height, view.scale, crop, view.top)
    columns = _Axis(width, view.scale, crop, view.left, view.flip)
    window = np.s_[rows.begin : rows.end, columns.begin : columns.end]

    # The source is smaller than the result more often than not: normalise there, columns before rows.
    source = colours.normalise(image[window])
    wide = source.index_select(2, columns.low)
    if not columns.identity:
        wide.lerp_(source.index_select(2, columns.high), columns.weight)
    output = torch.zeros(3, crop, crop)
    covered = output[:, rows.part, columns.part]
    if rows.identity:
        covered.copy_(wide.index_select(1, rows.low))
    else:
        above, below = wide.index_select(1, rows.low), wide.index_select(1, rows.high)
        torch.lerp(above, below, rows.weight[:, None], out=covered)

    index = torch.from_numpy(np.ascontiguousarray(label[window]))
    target = torch.full((crop, crop), IGNORE, dtype=torch.int64)
    target[rows.part, columns.part] = index.index_select(1, columns.nearest).index_select(0, rows.nearest)
    return output, target


def pad(
    image: np.ndarray, label: np.ndarray, least: int, colours: Colours = IMAGENET
) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalise an image and pad it, centred.

    Args:
        image: uint8 (H, W, 3).
        label: uint8 (H, W).
        least: smallest side of the result, in pixels.
        colours: how the image is normalised.

    Returns:
        float32 (3, max(H, least), max(W, least)), 0 (the mean) where padded; int64 of the same size, 255 where padded.
    """
    (height, width), (tall, wide) = label.shape, (max(side, least) for side in label.shape)
    top, left = (tall - height) // 2, (wide - width) // 2
    output = torch.zeros(3, tall, wide)
    output[:, top : top + height, left : left + width] = colours.normalise(image)
    target = torch.full((tall, wide), IGNORE, dtype=torch.int64)
    target[top : top + height, left : left + width] = torch.from_numpy(np.ascontiguousarray(label))
    return output, target
