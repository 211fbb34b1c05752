"""Crops of clouds as networks take them: fetched, centred, augmented, shuffled, with their neighbour lists."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from sparsemask.containers import map_npy
from sparsemask.engine.data import make_loader, one_line_errors
from sparsemask.engine.randomness import draw_generator
from sparsemask.errors import UseError
from sparsemask.tasks.points.clouds.batch import PointBatch
from sparsemask.tasks.points.clouds.cloud import IGNORED, Cloud, CloudFile
from sparsemask.tasks.points.clouds.graph import build_graph, shell_order
from sparsemask.tasks.points.sampling import Pick, Planner, Possibilities, nearest, squared_distances

SHUFFLE = 13  # stream of randomness
VALIDATION = 1  # seed of validation crops: the same ones for every run
_FEW = 4  # clouds held where not all are

Sample = tuple[PointBatch, torch.Tensor]


class Clouds(Sequence):
    """Prepared clouds by number; all of them stay in memory, or the few last ones."""

    def __init__(self, files: Sequence[CloudFile], hold: bool = True):
        self.files, self._most, self._held = list(files), len(files) if hold else _FEW, OrderedDict()

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Cloud:
        if number not in self._held:
            self._held[number] = self.files[number].read()
            if len(self._held) > self._most:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]

    @property
    def names(self) -> list[str]:
        """Of the clouds, in order."""
        return [file.name for file in self.files]

    @cached_property
    def sizes(self) -> list[int]:
        """Points of every cloud; from a file's header where clouds are not held."""
        if self._most < len(self) and all(file.path.suffix == ".npy" for file in self.files):
            return [len(map_npy(file.path)) for file in self.files]
        return [len(self[number]) for number in range(len(self))]


@dataclass(frozen=True)
class CropSettings:
    """How a crop becomes the network's input.

    Attributes:
        n_points: points of a crop.
        k, ratio, levels: of its neighbour lists (:func:`sparsemask.points.build_graph`).
        colours: whether features are x, y, z, r, g, b.
        centred: coordinates from the crop's centre, not the sensor's.
        tilt: largest rotation about x and y in degrees, in training; all rotate about z and are scaled by 0.8 to 1.2.
    """

    n_points: int
    k: int
    ratio: int
    levels: int
    colours: bool
    centred: bool
    tilt: float = 0.0

    def __post_init__(self) -> None:
        least = self.ratio ** (self.levels - 1)
        if self.n_points < least:
            raise UseError(f"--n_points {self.n_points}: {self.levels} levels by {self.ratio} need {least} or more")


def augmentation(rng: np.random.Generator, tilt: float = 0.0) -> np.ndarray:
    """(3, 3) float32, by which rows x, y, z are multiplied from the right.

    Rotation about z by U[0, 2π), about x and y by U[-tilt, tilt] degrees, then scaling by U[0.8, 1.2].
    """
    matrix = np.eye(3)
    angles = [rng.uniform(0, 2 * math.pi), *(np.deg2rad(rng.uniform(-tilt, tilt, 2)) if tilt else ())]
    for axis, angle in zip((2, 0, 1), angles, strict=False):
        rotation, (i, j) = np.eye(3), [k for k in range(3) if k != axis]
        rotation[i, i] = rotation[j, j] = math.cos(angle)
        rotation[i, j], rotation[j, i] = math.sin(angle), -math.sin(angle)
        matrix = matrix @ rotation
    return (matrix * rng.uniform(0.8, 1.2)).astype(np.float32)


def cut(
    cloud: Cloud, pick: Pick, settings: CropSettings, rng: np.random.Generator, training: bool
) -> tuple[PointBatch, np.ndarray, np.ndarray]:
    """A crop as the network's input, its labels (n_points,) and its points' numbers in the cloud (n_points,).

    A cloud of fewer points is filled up with random ones of its own. Labels are -1 where the cloud has none.
    """
    indices = pick.indices
    if len(indices) < settings.n_points:
        indices = np.concatenate([indices, rng.choice(indices, settings.n_points - len(indices))])
    indices = indices[rng.permutation(len(indices))]
    indices = indices[shell_order(cloud.xyz[indices], settings.ratio, settings.levels)]
    xyz = cloud.xyz[indices]
    if settings.centred:
        xyz = xyz - pick.centre
    if training:
        xyz = xyz @ augmentation(rng, settings.tilt)
    features = [xyz]
    if settings.colours:
        if cloud.colours is None:
            raise UseError(f"{cloud.name}: it has no colours, which this network takes")
        features.append(cloud.colours[indices])
    crop = batch_of(np.concatenate(features, axis=1), settings)
    labels = np.full(len(indices), IGNORED) if cloud.labels is None else cloud.labels[indices]
    return crop, labels.astype(np.int64), indices


def batch_of(features: np.ndarray, settings: CropSettings) -> PointBatch:
    """Shuffled points (N, d_in) as a batch of one, of any N that the levels allow."""
    threads = torch.get_num_threads()  # 1 inside a loader's worker
    neighbours, upsample = build_graph(features[:, :3], settings.k, settings.ratio, settings.levels, threads)
    return PointBatch(
        torch.from_numpy(np.ascontiguousarray(features.T, np.float32))[None],
        [torch.from_numpy(indices)[None] for indices in neighbours],
        [torch.from_numpy(indices)[None] for indices in upsample],
    )


def collate(samples: Sequence[tuple]) -> tuple:
    """One batch: crops joined, other tensors stacked."""
    crops, *rest = zip(*samples, strict=True)
    return (PointBatch.collate(crops), *(torch.stack(tensors) for tensors in rest))


class TrainingCrops:
    """Training crops: `steps` batches an epoch. See :func:`possibility_crops` and :class:`RandomCrops`."""

    collate = staticmethod(collate)

    def __init__(self, clouds: Clouds, settings: CropSettings, length: int):
        self.clouds, self.settings, self.length = clouds, settings, length

    def __len__(self) -> int:
        return self.length

    def _crop(self, pick: Pick, rng: np.random.Generator) -> Sample:
        crop, labels, _ = cut(self.clouds[pick.cloud], pick, self.settings, rng, training=True)
        return crop, torch.from_numpy(labels)


class RandomCrops(TrainingCrops):
    """Crops of a random cloud around a random point."""

    def sample(self, index: int, rng: np.random.Generator) -> Sample:
        """A crop drawn from `rng` alone."""
        number = int(rng.integers(len(self.clouds)))
        xyz = self.clouds[number].xyz
        centre = xyz[rng.integers(len(xyz))]
        return self._crop(Pick(number, nearest(squared_distances(xyz, centre), self.settings.n_points), centre), rng)


class PossibilityCrops(TrainingCrops):
    """Crops where least was seen so far, with noise in metres on the centre (:class:`Possibilities`)."""

    def __init__(self, clouds: Clouds, settings: CropSettings, length: int, noise: float):
        super().__init__(clouds, settings, length)
        self.noise = noise

    def sample(self, pick: Pick, rng: np.random.Generator) -> Sample:
        """The crop that a planner has picked."""
        return self._crop(pick, rng)

    def planner(
        self, batch: int, start: int, stop: int, seed: int,
        rank: int = 0, world: int = 1, parts: int = 1, state: dict | None = None,
    ) -> Planner:  # fmt: skip
        """Batches for the engine, with tables of their own."""
        tables = Possibilities(self.clouds, self.settings.n_points, seed, self.noise)
        return Planner(tables, batch, start, stop, rank, world, parts, state)


class EvaluationCrops(Dataset):
    """Crops without augmentation: of a :class:`Pick`, (input, labels, indices of the points, index of the cloud).

    As a sequence: the crops (input, labels) of validation while training. They are picked by possibility from new
    tables, so that the metrics of all steps and runs are of the same crops.
    """

    def __init__(self, clouds: Clouds, settings: CropSettings, length: int, noise: float):
        self.clouds, self.settings, self.length, self.noise = clouds, settings, length, noise
        self._first: list[Pick] = []

    def __len__(self) -> int:
        return self.length

    def tables(self) -> Possibilities:
        """Fresh ones."""
        return Possibilities(self.clouds, self.settings.n_points, VALIDATION, self.noise)

    def picks(self) -> Iterator[Pick]:
        """The validation crops, planned as they are asked for."""
        tables = self.tables()
        return (tables.pick(draw)[0] for draw in range(self.length))

    def __getitem__(self, key: int | Pick) -> tuple:
        if isinstance(key, Pick):
            return one_line_errors(self._crop, key)
        if not 0 <= key < self.length:
            raise IndexError(key)
        if key >= len(self._first):
            self._first = list(islice(self.picks(), key + 1))
        return self._crop(self._first[key])[:2]

    collate = staticmethod(collate)

    def name(self, key: int) -> str:
        """Of the cloud that validation crop `key` is from."""
        self[key]
        return self.clouds.names[self._first[key].cloud]

    def _crop(self, pick: Pick) -> tuple:
        rng = draw_generator(VALIDATION, SHUFFLE, pick.draw)  # another order is another choice of coarse levels
        crop, labels, indices = cut(self.clouds[pick.cloud], pick, self.settings, rng, training=False)
        return crop, torch.from_numpy(labels), torch.from_numpy(indices), torch.tensor(pick.cloud)

    def loader(self, picks: Iterator[Pick], batch: int, workers: int) -> DataLoader:
        """Batches (inputs, labels (B, n), points' numbers (B, n), clouds' numbers (B,)), in the order of the picks."""
        batches = iter(lambda: list(islice(picks, batch)), [])
        return make_loader(self, workers, batch_sampler=batches, collate_fn=collate)
