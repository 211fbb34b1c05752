"""A trained network as a function of pictures of any size: labels, colours, an overlay, probabilities."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sparsemask.devices import Arithmetic, arithmetic
from sparsemask.errors import UseError
from sparsemask.ops.dispatch import repeatable
from sparsemask.pictures.overlay import blend
from sparsemask.pictures.predictions import save_prediction
from sparsemask.prediction.description import Description
from sparsemask.tasks.dense.task import average_views
from sparsemask.VOC12.images import read_picture, rgb_array

Picture: TypeAlias = "str | os.PathLike[str] | Image.Image | np.ndarray | Tensor"
"""A file, a Pillow image, an array (H, W), (H, W, 3) or (H, W, 4), or a tensor (3, H, W)."""


@dataclass(frozen=True)
class Prediction:
    """What a network says of a picture.

    Attributes:
        image: the picture, uint8 (H, W, 3).
        scores: float32 (C, H, W): logits of one view, or means of probabilities over several.
        description: of the network.
        averaged: whether `scores` are probabilities.
    """

    image: np.ndarray = field(repr=False)
    scores: Tensor = field(repr=False)
    description: Description
    averaged: bool = False

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.description.classes

    @cached_property
    def probabilities(self) -> np.ndarray:
        """float32 (C, H, W), summing to 1 over the classes; of maps of yes and no (1, H, W), the probability of yes."""
        scores = self.scores
        if not self.averaged:
            scores = scores.sigmoid() if self.description.output == "probability" else scores.softmax(0)
        probabilities: np.ndarray = scores.numpy()
        return probabilities

    @cached_property
    def labels(self) -> np.ndarray:
        """The likeliest class of every pixel, uint8 (H, W); of maps of yes and no 1 where yes is as likely or more."""
        if self.description.output == "probability":
            return np.asarray(self.probabilities[0] >= 0.5).astype(np.uint8)
        labels: np.ndarray = self.scores.argmax(0).numpy().astype(np.uint8)
        return labels

    @property
    def colours(self) -> np.ndarray:
        """The labels in their classes' colours, uint8 (H, W, 3); maps of yes and no in grey, white for yes."""
        if self.description.output == "probability":
            grey = np.rint(255 * self.probabilities[0]).astype(np.uint8)
            return np.dstack([grey] * 3)
        return np.asarray(self.description.palette[self.labels])

    @property
    def overlay(self) -> np.ndarray:
        """The picture with the classes' colours over it, uint8 (H, W, 3)."""
        if self.description.output == "probability":
            return blend(self.image, self.description.palette[1:2], np.zeros_like(self.labels), self.probabilities[0])
        return blend(self.image, self.description.palette, self.labels)

    @property
    def shares(self) -> dict[str, float]:
        """The share of the picture that each class has, the largest first; classes that do not occur are left out."""
        counts = np.bincount(self.labels.ravel(), minlength=len(self.classes)) / self.labels.size
        return {self.classes[k]: float(counts[k]) for k in np.argsort(-counts, kind="stable") if counts[k]}

    def save_labels(self, path: str | os.PathLike[str], as_files: bool = False) -> None:
        """Write the class numbers as a PNG with the palette; maps of yes and no as grey PNG, white for yes.

        Args:
            path: the file.
            as_files: write the numbers that the training's label files had (--label_map), not those of the classes.
        """
        if self.description.output == "probability":
            from sparsemask.pictures.maps import save_map

            save_map(path, self.probabilities[0])
        elif as_files and self.description.label_map is not None:
            numbers = np.array(self.description.numbers, np.uint8)
            palette = np.zeros((256, 3), np.uint8)
            palette[numbers] = self.description.palette
            save_prediction(path, numbers[self.labels], palette)
        else:
            save_prediction(path, self.labels, self.description.palette)


class Predictor:
    """A trained network as a function of pictures.

    Pictures of any size are taken, prepared as the network's evaluation prepares them: normalised, padded where they
    are smaller than `description.input_size`, computed whole, the padding cut off. Files that were exported for one
    size alone get pictures reduced to that size, and their scores are enlarged again.

    Args:
        network: a module in evaluation mode, or any function, of images (N, 3, H, W), that gives scores (N, C, h, w).
        description: what it says of itself.
        where: device and precision; None: the CPU in float32.
        source: where it comes from, for messages.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        description: Description,
        where: Arithmetic | None = None,
        source: str = "the network",
    ):
        self.network, self.description, self.source = network, description, source
        self.arithmetic = where or arithmetic(-1)

    def __call__(
        self, image: Picture, *, longest: int | None = None, flips: bool = False, scales: Sequence[float] = (1.0,)
    ) -> Prediction:
        """The prediction for a picture.

        Args:
            image: see :data:`Picture`; values of floats are 0 to 1.
            longest: reduce pictures whose longer side is longer than so many pixels for the network; the result has the
                picture's size all the same. For pictures that memory is too small for.
            flips: average over mirrored copies.
            scales: average over copies enlarged by these factors.

        Raises:
            UseError: no readable picture, an output that does not fit the description, or too little memory.
        """
        pixels = as_rgb(image)
        size = (pixels.shape[0], pixels.shape[1])
        small, room = self._fitted(pixels, longest)
        padded, (top, left) = self._padded(small, room)
        single = not flips and tuple(scales) == (1.0,)
        several = lambda logits: logits if single else self._probabilities(logits)
        try:
            with torch.no_grad(), repeatable():
                scores = average_views(self.network, padded[None], self.arithmetic, several, flips, tuple(scales))
                if scores.shape[1] != self.description.channels:
                    raise UseError(
                        f"{self.source}: gives {scores.shape[1]} channels, and its description has "
                        f"{self.description.channels} ({', '.join(self.description.classes[:4])}, ...)"
                    )
                cut = scores[:, :, top : top + small.shape[0], left : left + small.shape[1]]
                if small.shape[:2] != size:
                    cut = F.interpolate(cut, size=size, mode="bilinear", align_corners=False)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            advice = max(256, max(size) // 2 if longest is None else longest // 2)
            raise UseError(f"not enough memory for {size[1]}x{size[0]} pixels: try --longest {advice}") from None
        return Prediction(pixels, cut[0].float().cpu(), self.description, averaged=not single)

    def _probabilities(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self.description.output == "probability" else logits.softmax(1)

    def _fitted(self, pixels: np.ndarray, longest: int | None) -> tuple[np.ndarray, tuple[int, int]]:
        """(the picture, reduced where it must be; height and width that the network must be given at least)."""
        height, width = pixels.shape[:2]
        shape = self.description.input_shape or (None,) * 4
        fixed = tuple(shape[2:])
        factor = min([1.0, *(limit / side for limit, side in zip(fixed, (height, width), strict=True) if limit)])
        if longest is not None:
            factor = min(factor, longest / max(height, width))
        if factor < 1:
            to = max(1, round(width * factor)), max(1, round(height * factor))
            pixels = np.array(Image.fromarray(pixels).resize(to, Image.Resampling.BILINEAR))
        least = self.description.input_size
        tall, wide = (limit or max(side, least) for limit, side in zip(fixed, pixels.shape[:2], strict=True))
        return pixels, (tall, wide)

    def _padded(self, pixels: np.ndarray, room: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """(normalised float32 (3, *room), the picture centred; its top and left there)."""
        top, left = ((have - side) // 2 for have, side in zip(room, pixels.shape[:2], strict=True))
        output = torch.zeros(3, *room)
        inside = self.description.colours.normalise(pixels)
        output[:, top : top + pixels.shape[0], left : left + pixels.shape[1]] = inside
        return output, (top, left)


def as_rgb(image: Picture) -> np.ndarray:
    """A picture as an array uint8 (H, W, 3).

    Args:
        image: see :data:`Picture`. Arrays and tensors hold uint8, or floats of 0 to 1; alpha is dropped.

    Raises:
        UseError: a file that cannot be read, or an array of another shape or range.
    """
    if isinstance(image, str | os.PathLike):
        return read_picture(image)
    if isinstance(image, Image.Image):
        return rgb_array(image)[0]
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise UseError(f"a tensor {tuple(image.shape)} is no picture: expected (3, H, W)")
        image = image.detach().cpu().permute(1, 2, 0).numpy()
    values = np.asarray(image)
    if values.ndim == 2:
        values = values[..., None].repeat(3, axis=2)
    if values.ndim != 3 or values.shape[2] not in (3, 4) or 0 in values.shape:
        raise UseError(f"an array {values.shape} is no picture: expected (H, W, 3), (H, W, 4) or (H, W)")
    values = values[..., :3]
    if values.dtype.kind == "f":
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise UseError(
                "an array of floats outside of 0 to 1 is no picture: divide by its largest value, or use uint8"
            )
        values = np.rint(255 * values)
    elif values.dtype.kind not in "iub" or values.min() < 0 or values.max() > 255:
        raise UseError(f"an array of {values.dtype} outside of 0 to 255 is no picture: use uint8, or floats of 0 to 1")
    return np.ascontiguousarray(values, dtype=np.uint8)
