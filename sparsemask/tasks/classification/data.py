"""Images with one class each as tensors: small ones of one size held in memory, others read from their files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from torch.utils.data import Dataset

from sparsemask.errors import UseError
from sparsemask.files import distinct_names
from sparsemask.VOC12.images import read_picture

Array = np.ndarray


@dataclass(frozen=True)
class Cut:
    """How images are cut and normalised for a network.

    Attributes:
        size: side of the crop of images from files; those in memory keep theirs.
        resize: what their shorter side becomes before.
        pad: black pixels around images in memory.
        mean, std: of each colour, in [0, 1].
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int = 224
    resize: int = 256
    pad: int = 4
    flip: bool = True

    def tensor(self, images: Array) -> torch.Tensor:
        """float32 (..., 3, H, W), normalised, of uint8 (..., 3, H, W)."""
        mean, std = (
            torch.tensor(statistic, dtype=torch.float32)[:, None, None] * 255 for statistic in (self.mean, self.std)
        )
        return torch.from_numpy(np.ascontiguousarray(images)).float().sub_(mean).div_(std)

    def picture(self, image: torch.Tensor) -> Array:
        """The uint8 image (H, W, 3) that became `image` (3, H, W)."""
        mean, std = (torch.tensor(statistic)[:, None, None] for statistic in (self.mean, self.std))
        values = (image.float().cpu() * std + mean) * 255
        return np.ascontiguousarray(values.round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy())


@dataclass(frozen=True)
class Part:
    """Training or validation images: uint8 (N, H, W, 3), or the files of N images; classes (N,) int64."""

    pictures: Array | Sequence[Path]
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def held(self) -> bool:
        """Whether the images are in memory."""
        return isinstance(self.pictures, np.ndarray)

    def name(self, index: int) -> str:
        """Name of an image: of its file, with folders where two have the same, else its number."""
        return f"{index:05d}" if self.held else self._names[index]

    @cached_property
    def _names(self) -> list[str]:
        return distinct_names(self.pictures, suffix=True)

    def take(self, indices: Array) -> Part:
        """The images with these indices, as a part of its own."""
        images = self.pictures[indices] if self.held else [self.pictures[i] for i in indices]
        return Part(images, self.labels[indices])


class _Pictures(Dataset):
    """The images of a part, cut for a network."""

    def __init__(self, part: Part, cut: Cut):
        self.part, self.cut = part, cut

    def __len__(self) -> int:
        return len(self.part)

    def name(self, index: int) -> str:
        """Of an image."""
        return self.part.name(index)


class HeldPictures(_Pictures):
    """Images in memory. Training: a crop of the padded image at random, mirrored at random; else as they are.

    ``batch`` makes a whole training batch at once, from four random words a sample (see the engine's data module).
    """

    def load(self, index: int) -> tuple[Array, int]:
        """uint8 (H, W, 3), and the class."""
        return self.part.pictures[index], int(self.part.labels[index])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 (3, H, W) and the class, int64; without augmentation."""
        image, label = self.load(index)
        return self.cut.tensor(image.transpose(2, 0, 1)), torch.tensor(label)

    def sample(self, index: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """One training image, all from `rng`."""
        words = rng.integers(2**64, size=(1, 4), dtype=np.uint64)
        images, labels = self.batch(np.array([index]), words)
        return images[0], labels[0]

    def batch(self, indices: Array, random_words: Array) -> tuple[torch.Tensor, torch.Tensor]:
        """Training images float32 (B, 3, H, W) and classes (B,); random_words: uint64 (B, 4)."""
        images, labels = self.part.pictures[indices], torch.from_numpy(self.part.labels[indices])
        return self.cut.tensor(augment(images.transpose(0, 3, 1, 2), self.cut.pad, self.cut.flip, random_words)), labels


def augment(images: Array, pad: int, flip: bool, random_words: Array) -> Array:
    """Random crops (B, C, H, W) of images with `pad` zeros around, mirrored at random with `flip`.

    Args:
        random_words: uint64 (B, 4), of which three choose row, column and side.
    """
    count, channels, height, width = images.shape
    padded = np.zeros((count, channels, height + 2 * pad, width + 2 * pad), images.dtype)
    padded[..., pad : pad + height, pad : pad + width] = images
    top, left = ((random_words[:, k] % np.uint64(2 * pad + 1)).astype(np.intp) for k in (0, 1))
    cut = sliding_window_view(padded, (height, width), axis=(2, 3))[np.arange(count), :, top, left]
    if flip:
        mirrored = (random_words[:, 2] & np.uint64(1)).astype(bool)
        cut[mirrored] = cut[mirrored][..., ::-1]
    return cut


class FilePictures(_Pictures):
    """Images of any size, read when they are needed: the shorter side resized, then a crop.

    Training: a crop at random, mirrored at random; else the middle.
    """

    def __init__(self, part: Part, cut: Cut):
        if cut.resize < cut.size:
            raise UseError(f"--resize {cut.resize}: pictures are cropped to {cut.size} after it (--image_size)")
        super().__init__(part, cut)

    def load(self, index: int) -> tuple[Array, int]:
        """uint8 (h, w, 3) with its shorter side resized, and the class; UseError for a broken file."""
        image = Image.fromarray(read_picture(self.part.pictures[index]))
        factor = self.cut.resize / min(image.size)
        size = [max(self.cut.resize, round(side * factor)) for side in image.size]
        return np.asarray(image.resize(size, Image.Resampling.BILINEAR)), int(self.part.labels[index])

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """float32 (3, size, size) of the middle, and the class, int64."""
        image, label = self.load(index)
        top, left = ((side - self.cut.size) // 2 for side in image.shape[:2])
        return self._cropped(image, top, left), torch.tensor(label)

    def sample(self, index: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """One training image, all from `rng`."""
        image, label = self.load(index)
        top, left = (int(rng.integers(side - self.cut.size + 1)) for side in image.shape[:2])
        mirrored = bool(rng.integers(2)) and self.cut.flip
        return self._cropped(image, top, left, mirrored), torch.tensor(label)

    def _cropped(self, image: Array, top: int, left: int, mirrored: bool = False) -> torch.Tensor:
        crop = image[top : top + self.cut.size, left : left + self.cut.size]
        return self.cut.tensor((crop[:, ::-1] if mirrored else crop).transpose(2, 0, 1))


def data_set(part: Part, cut: Cut) -> HeldPictures | FilePictures:
    """The data set of a part, by where its images are."""
    return (HeldPictures if part.held else FilePictures)(part, cut)
