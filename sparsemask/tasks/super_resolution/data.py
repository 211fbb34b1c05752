"""Pairs of low- and high-resolution images as tensors: patches to train on, whole images to validate."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import Dataset

from sparsemask.errors import UseError
from sparsemask.files import distinct_names
from sparsemask.options import stage_at
from sparsemask.tasks.super_resolution.folders import Pair
from sparsemask.tasks.super_resolution.store import MEMORY, PictureStore


class SuperResolutionDataset(Dataset):
    """Pairs of images, RGB, values 0 to 255.

    Args:
        pairs: the files.
        scale: high over low resolution.
        patch_size: side of a training patch in low-resolution pixels, or (end, side) of each stage of the run, see
            :func:`sparsemask.options.stages`; None: whole images, to validate.
        repeat: how often a pass goes through the images, with other patches each time.
        crop_even: whole images lose the last row or column where their low-resolution sides are odd, as the public
            evaluation has it (Wang et al., CVPR 2021, whose network halves its input and takes no odd sides).
        kind: see :class:`~sparsemask.tasks.super_resolution.store.PictureStore`.
        memory: likewise.

    Attributes:
        left_out: how many images are smaller than the largest patch and not used.

    Raises:
        UseError: no pairs, none as large as a patch, and what the store raises.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        scale: int = 2,
        patch_size: int | Sequence[tuple[float, int]] | None = None,
        repeat: int = 1,
        crop_even: bool = False,
        kind: str = "auto",
        memory: int = MEMORY,
    ):
        if not len(pairs):
            raise UseError("the data set is empty: there are no pictures in it")
        self.scale, self.repeat, self.crop_even = int(scale), max(1, repeat), crop_even
        self.stages = [(1.0, patch_size)] if isinstance(patch_size, int) else list(patch_size or ())
        patch_size = max((side for _, side in self.stages), default=None)
        self.patch_size = self.stages[-1][1] if self.stages else None
        self.store = PictureStore(pairs, scale, kind, memory)
        self.left_out = 0
        if patch_size is not None:
            large = [pair for pair, size in zip(pairs, self.store.sizes, strict=True) if min(size) >= patch_size]
            if not large:
                most = max(map(min, self.store.sizes))
                raise UseError(
                    f"--patch_size {patch_size} (low-resolution pixels): the pictures have room for {most} at most"
                )
            self.left_out = len(pairs) - len(large)
            if self.left_out:
                self.store = PictureStore(large, scale, kind, memory)

    def __len__(self) -> int:
        return len(self.store) * self.repeat

    @property
    def pairs(self) -> list[Pair]:
        """The files in use."""
        return self.store.pairs

    def name(self, index: int) -> str:
        """Name of an image: its file's, without suffix; with folders where two would have the same."""
        return self._names[index % len(self.store)]

    @cached_property
    def _names(self) -> list[str]:
        return distinct_names([pair.hr for pair in self.pairs])

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A pair, whole: uint8 (h, w, 3) and (scale * h, scale * w, 3)."""
        lr, hr = self.store[index % len(self.store)]
        if self.crop_even and self.patch_size is None:
            h, w = (side - side % 2 for side in lr.shape[:2])
            return lr[:h, :w], hr[: self.scale * h, : self.scale * w]
        return lr, hr

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole pair, float32 (3, h, w) and (3, scale * h, scale * w); of training data a patch of it."""
        if self.patch_size is not None:
            return self.sample(index, np.random.default_rng(int(torch.randint(2**62, ()))))
        lr, hr = self.load(index)
        return to_tensor(lr), to_tensor(hr)

    def at(self, share: float) -> SuperResolutionDataset:
        """The data set with the patches of a share of the run."""
        side = stage_at(self.stages, share)
        if side == self.patch_size:
            return self
        staged = copy.copy(self)
        staged.patch_size = side
        return staged

    def sample(self, index: int, rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """A patch at random, flipped and transposed at random; all from `rng`.

        Returns:
            float32 (3, p, p) and (3, scale * p, scale * p), the latter exactly the region of the former.
        """
        lr, hr = self.load(index)
        p, s = self.patch_size, self.scale
        top, left = (int(rng.integers(side - p + 1)) for side in lr.shape[:2])
        turns = tuple(bool(turn) for turn in rng.integers(2, size=3))
        low = lr[top : top + p, left : left + p]
        high = hr[s * top : s * (top + p), s * left : s * (left + p)]
        return to_tensor(augment(low, *turns)), to_tensor(augment(high, *turns))


def augment(patch: np.ndarray, mirror: bool, flip: bool, transpose: bool) -> np.ndarray:
    """One of the eight symmetries of a square, on (H, W, C): left-right, top-bottom, then the diagonal; a view."""
    if mirror:
        patch = patch[:, ::-1]
    if flip:
        patch = patch[::-1]
    return patch.swapaxes(0, 1) if transpose else patch


def to_tensor(image: np.ndarray) -> torch.Tensor:
    """(H, W, 3) uint8 as float32 (3, H, W) of 0 to 255."""
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32))


def repeats(images: int, batch: int, test_every: int = 1000) -> int:
    """Number of repetitions of the images in a pass, so that it has about `test_every` batches; at least 1.

    As published: 20 for 800 images in batches of 16, which is exactly 1000 batches.

    Args:
        images: number of training images.
        batch: samples of a step.
        test_every: batches of a pass.
    """
    return max(1, test_every * batch // images)
