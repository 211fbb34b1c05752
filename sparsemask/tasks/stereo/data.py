"""Pairs as networks take them: crops and fresh scenes to train on, whole padded pairs to validate."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch.utils.data import Dataset

from sparsemask.errors import UseError
from sparsemask.files import distinct_names
from sparsemask.synthetic.stereo_scenes import make_scene
from sparsemask.tasks.stereo.batch import StereoPair, make_pair, pad16, random_crop
from sparsemask.tasks.stereo.files import Frame, PairFiles, read_frame
from sparsemask.tasks.stereo.scores import valid

Sample = tuple[StereoPair, torch.Tensor]
_HELD = 48  # frames that are all kept in memory; of more the last few
_FEW = 4
_TRIES = 10  # crops drawn until one has enough truth
_ENOUGH = 0.01  # of a crop's pixels


class Frames(Sequence):
    """Pairs from files by number; a few sets' worth stay in memory."""

    def __init__(self, files: Sequence[PairFiles]):
        self.files, self._held = list(files), OrderedDict()
        self._most = len(self.files) if len(self.files) <= _HELD else _FEW

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Frame:
        if number not in self._held:
            self._held[number] = read_frame(self.files[number])
            if len(self._held) > self._most:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]

    def name(self, number: int) -> str:
        """Of a pair; by the left image's path where two would have the same."""
        return self._names[number]

    @cached_property
    def _names(self) -> list[str]:
        names = [file.name for file in self.files]
        return names if len(set(names)) == len(names) else distinct_names([file.left for file in self.files])


class Scenes(Sequence):
    """Generated scenes by number, the same ones for every run; size (height, width), disparities up to `most` px."""

    def __init__(self, count: int, size: tuple[int, int], most: float):
        self.count, self.size, self.most = count, size, most

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Frame:
        if not 0 <= number < self.count:
            raise IndexError(number)
        return make_scene(np.random.default_rng([1, number]), *self.size, self.most, name=self.name(number))

    def name(self, number: int) -> str:
        """Of a scene."""
        return f"scene_{number:02d}"


def collate(samples: Sequence[Sample]) -> Sample:
    """One batch: pairs, and their truth along the first axis."""
    pairs, truths = zip(*samples, strict=True)
    return StereoPair.collate(pairs), torch.cat(truths)


class TrainingCrops(Dataset):
    """Windows of pairs at random; `size` (height, width), a truth below `maxdisp` px in each."""

    collate = staticmethod(collate)

    def __init__(self, frames: Frames, size: tuple[int, int], maxdisp: int):
        if not len(frames):
            raise UseError("the training set is empty: there are no pairs in it")
        self.frames, self.size, self.maxdisp = frames, size, maxdisp

    def __len__(self) -> int:
        return len(self.frames)

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """(pair (1, 3, h, w), disparity (1, h, w), 0 = no value); from `rng`.

        Windows with hardly any truth are drawn again; UseError for a pair that has no truth to learn from at all.
        """
        frame = self.frames[index]
        truth = torch.from_numpy(frame.disparity)[None]
        if not valid(truth, self.maxdisp).any():
            path = self.frames.files[index].disparity or self.frames.name(index)
            raise UseError(f"{path}: no disparity above 0 and below --maxdisp {self.maxdisp}: nothing to learn from")
        pair = make_pair(frame.left, frame.right)
        for _ in range(_TRIES):
            crop = random_crop(pair, truth, self.size, rng)
            if valid(crop[1], self.maxdisp).float().mean() >= _ENOUGH:
                break
        return crop


class TrainingScenes(Dataset):
    """Generated scenes, a new one at every draw; an epoch has `length`."""

    collate = staticmethod(collate)

    def __init__(self, length: int, size: tuple[int, int], most: float):
        self.length, self.size, self.most = length, size, most

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """(pair (1, 3, h, w), disparity (1, h, w)) of a scene drawn from `rng`."""
        frame = make_scene(rng, *self.size, self.most)
        return make_pair(frame.left, frame.right), torch.from_numpy(frame.disparity)[None]


class WholePairs(Dataset):
    """Whole pairs, padded to multiples of 16, with all that is known of them."""

    collate = staticmethod(collate)

    def __init__(self, frames: Frames | Scenes):
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def name(self, index: int) -> str:
        """Of a pair."""
        return self.frames.name(index)

    def __getitem__(self, index: int) -> Sample:
        """(pair (1, 3, H', W'), truth (1, 3, H, W): disparity, non-occluded, foreground), see `stereo_scores`."""
        frame = self.frames[index]
        maps = [frame.disparity]
        for extra_map in (frame.noc, frame.foreground):
            maps.append(np.full(frame.size, -1, np.float32) if extra_map is None else extra_map.astype(np.float32))
        return pad16(make_pair(frame.left, frame.right)), torch.from_numpy(np.stack(maps))[None]
