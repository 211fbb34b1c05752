"""Data loading: an endless, reproducible stream of full batches that can start at any step.

Sample number n of a run is entry n mod N of the permutation of pass n // N, augmented by a generator that depends on
the seed and n alone. Batches are consecutive samples, always full (a pass may end inside one). With several processes
each takes its share of every batch, so that the batches do not depend on how many processes there are.

A source of training samples is a :class:`DataSource`, one of validation samples an :class:`EvaluationSource`. What only
some sources can do is a protocol of its own: :class:`PlannedSource`, :class:`BatchSource`, :class:`CollatingSource`,
:class:`StagedSource`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from sparsemask.engine.distributed import warn
from sparsemask.engine.randomness import draw_generator, draw_words
from sparsemask.errors import UseError, describe, lost_worker, one_line
from sparsemask.processes import begin_helper, helper_context
from sparsemask.VOC12.images import picture_notes

ORDER, AUGMENT = 1, 2  # streams of randomness


@runtime_checkable
class DataSource(Protocol):
    """Training samples."""

    def __len__(self) -> int:
        """Samples of an epoch, 1 or more."""

    def sample(self, index: Any, rng: np.random.Generator) -> tuple[Any, torch.Tensor]:
        """One augmented sample (input, target).

        Args:
            index: 0 to ``len - 1``; of a :class:`PlannedSource` what its planner chose.
            rng: all randomness of the sample.

        Raises:
            UseError: a file that is absent or broken.
        """


@runtime_checkable
class NamedSource(Protocol):
    """A source whose samples have names."""

    def name(self, index: int) -> str:
        """Name of a sample, unique in the source: of its file, its cloud or its number."""


@runtime_checkable
class FileSource(Protocol):
    """A source that reads each sample from a pair of files.

    Attributes:
        pairs: the files of every sample, the input's first.
    """

    pairs: Sequence[tuple[str | Path, str | Path]]

    def load(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """A pair as it was read, not augmented."""


@runtime_checkable
class EvaluationSource(NamedSource, Protocol):
    """Validation samples."""

    def __len__(self) -> int:
        """Samples, 1 or more."""

    def __getitem__(self, index: int) -> tuple[Any, torch.Tensor]:
        """Sample `index` (input, target), the same at every call.

        Raises:
            UseError: a file that is absent or broken.
        """


@runtime_checkable
class CollatingSource(Protocol):
    """A source whose inputs are no tensors of one shape."""

    def collate(self, samples: Sequence[tuple]) -> tuple[Any, torch.Tensor]:
        """One batch (inputs, targets) of samples."""


@runtime_checkable
class BatchSource(Protocol):
    """A source that makes many samples at once faster than one by one."""

    def batch(self, indices: np.ndarray, words: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """One augmented batch (inputs, targets).

        Args:
            indices: (B,) int64, of the samples.
            words: (B, 4) uint64, all randomness of each (:func:`~sparsemask.engine.randomness.draw_words`).
        """


@runtime_checkable
class StagedSource(Protocol):
    """A source whose samples change in the course of a run."""

    def at(self, share: float) -> DataSource:
        """The source as it is sampled at a share of the run, in [0, 1]; of the same length."""


class BatchSampler(Protocol):
    """Batches of keys for the steps of a run, this process's share of each, in parts."""

    def __len__(self) -> int:
        """Batches."""

    def __iter__(self) -> Iterator[list]:
        """The keys of each batch."""

    def consumed(self, step: int) -> None:
        """Called when the run has finished `step`."""

    def state(self, step: int) -> dict | None:
        """What a checkpoint after `step` steps needs of the sampler, whatever was planned since; None: nothing."""


@runtime_checkable
class PlannedSource(Protocol):
    """A source whose samples depend on what was sampled before."""

    def planner(
        self, batch: int, start: int, stop: int, seed: int,
        rank: int = 0, world: int = 1, parts: int = 1, state: dict | None = None,
    ) -> BatchSampler:  # fmt: skip
        """Batches of keys for the steps `start` to `stop`; keys carry all that a worker needs.

        Args:
            batch: samples of a step, over all processes.
            seed: of the run.
            rank: number of this process.
            world: number of processes.
            parts: number of parts of each process's share.
            state: what the sampler's `state` gave after `start` steps; None: plan from the beginning.
        """


class SeededSamples(Dataset):
    """Wraps ``source.sample(index, rng)`` so that a sample is a function of (seed, index, draw number).

    Args:
        source: the samples.
        seed: of the run.
        stream: of randomness.
        total: samples that the whole run draws, by which a :class:`StagedSource` is asked for its stage; 0: its last.
    """

    def __init__(self, source: DataSource, seed: int, stream: int = AUGMENT, total: int = 0):
        self.source, self.seed, self.stream, self.total = source, seed, stream, total

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]):
        index, draw = key
        source = self.source
        if isinstance(source, StagedSource):
            source = source.at(draw / self.total if self.total else 1.0)
        return one_line_errors(source.sample, index, draw_generator(self.seed, self.stream, draw))

    def __getitems__(self, keys: list[tuple[int, int]]):
        """What torch's loader asks for: the samples of a batch, or the batch itself of a source that makes it."""
        if not isinstance(self.source, BatchSource):
            return [self[key] for key in keys]
        indices, draws = np.array(keys, dtype=np.int64).reshape(-1, 2).T
        return one_line_errors(self.source.batch, indices, draw_words(self.seed, self.stream, draws))


class Listed(Dataset):
    """``source[i]`` for the given indices, in order."""

    def __init__(self, source: EvaluationSource, indices):
        self.source, self.indices = source, [int(i) for i in indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int):
        return one_line_errors(self.source.__getitem__, self.indices[position])


def one_line_errors(function, *arguments):
    """Wrap a function: a UseError becomes a plain one-line error that :func:`plainly` can parse."""
    try:
        return function(*arguments)
    except UseError as error:
        raise UseError(one_line(error)) from None
    except OSError as error:  # on the way out of a worker it would lose its number and its path
        reason = describe(error)
        if reason is None:
            raise
        raise UseError(one_line(reason)) from None


class StepSampler:
    """Batches of (index, draw number) for the steps `start` to `stop`, this process's share of each, in `parts`.

    Each sample is drawn `repeat` times in a row, differently augmented (Hoffer et al., 2020, arXiv 1901.09335).
    """

    def __init__(
        self, length: int, batch: int, start: int, stop: int, seed: int, rank: int = 0, world: int = 1, parts: int = 1,
        repeat: int = 1,
    ):  # fmt: skip
        self.length, self.batch, self.start, self.stop, self.seed = length, batch, start, stop, seed
        self.rank, self.world, self.parts, self.repeat = rank, world, parts, repeat

    def __len__(self) -> int:
        return (self.stop - self.start) * self.parts

    def consumed(self, step: int) -> None:
        """Called when the run has finished `step`; nothing here depends on it."""

    def state(self, step: int) -> dict | None:
        """No state: the stream depends on the step alone."""
        return None

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch, order = -1, None
        for step in range(self.start, self.stop):
            keys = []
            for draw in range(step * self.batch, (step + 1) * self.batch):
                current, place = divmod(draw // self.repeat, self.length)
                if current != epoch:
                    epoch = current
                    order = draw_generator(self.seed, ORDER, epoch).permutation(self.length)
                keys.append((int(order[place]), draw))
            yield from shares(keys, self.rank, self.world, self.parts)


def shares(keys: list, rank: int, world: int, parts: int) -> Iterator[list]:
    """One process's share of a batch, in parts."""
    mine = keys[rank::world]
    share = len(mine) // parts
    for part in range(parts):
        yield mine[part * share : (part + 1) * share]


def step_sampler(
    source: DataSource, batch: int, start: int, stop: int, seed: int,
    rank: int = 0, world: int = 1, parts: int = 1, state: dict | None = None, repeat: int = 1,
) -> BatchSampler:  # fmt: skip
    """The sampler of a run's steps: the source's own planner, or a :class:`StepSampler`.

    Args:
        source: the training samples.
        batch: samples of a step, over all processes.
        start: first step.
        stop: step after the last.
        seed: of the run.
        rank: number of this process.
        world: number of processes.
        parts: number of parts of each process's share (gradient accumulation).
        state: the sampler's state in a checkpoint; None: plan from the beginning.
        repeat: augmented copies of each sample.

    Raises:
        UseError: copies of samples of a source that plans its own batches.
    """
    if isinstance(source, PlannedSource):
        if repeat > 1:
            raise UseError(f"--repeat_augment {repeat}: these data plan their own batches, which hold no copies")
        return source.planner(batch, start, stop, seed, rank, world, parts, state)
    return StepSampler(len(source), batch, start, stop, seed, rank, world, parts, repeat)


def collate(source: DataSource | EvaluationSource, samples: Sequence[tuple]) -> tuple[Any, torch.Tensor]:
    """One batch (inputs, targets) of a source's samples, by its own ``collate`` or torch's."""
    return source.collate(samples) if isinstance(source, CollatingSource) else default_collate(samples)


def as_it_is(batch):
    """Collation for sources whose items are batches already."""
    return batch


def make_loader(dataset, workers: int, seed: int = 0, **how) -> DataLoader:
    """Make a loader whose `workers` processes never outlive this one.

    Args:
        how: other arguments of torch's loader.
    """
    return DataLoader(
        dataset,
        num_workers=workers,
        worker_init_fn=quiet_worker,
        multiprocessing_context=helper_context() if workers else None,
        generator=torch.Generator().manual_seed(seed),
        **how,
    )


def training_loader(
    source: DataSource, sampler: BatchSampler, seed: int, workers: int, pin: bool = False, total: int = 0
) -> DataLoader:
    """Loader over a :func:`step_sampler`; `total` as :class:`SeededSamples` has it."""
    collation = source.collate if isinstance(source, CollatingSource) else None
    return make_loader(
        SeededSamples(source, seed, total=total),
        workers,
        seed,
        batch_sampler=sampler,
        collate_fn=as_it_is if isinstance(source, BatchSource) else collation,
        pin_memory=pin,
    )


def plainly(loader: DataLoader) -> Iterator:
    """Iterate a loader; an error of use in a worker arrives as its own line, without the worker's traceback.

    The worker processes end with the iteration, however it ends: at its last batch, by an error, or when this generator
    is closed. Leaving a ``for`` statement closes it; a generator kept in a variable needs ``contextlib.closing``.
    """
    batches = iter(loader)
    try:
        yield from batches
    except UseError as error:
        raise UseError(str(error).strip().rpartition("UseError: ")[2].strip()) from None
    except RuntimeError as error:
        reason = lost_worker(error)
        if reason is None:
            raise
        raise UseError(reason) from None
    finally:
        # Torch has no public name for it. Left to the iterator's end, it would wait for whoever holds a traceback.
        if isinstance(batches, _MultiProcessingDataLoaderIter):
            batches._shutdown_workers()


def quiet_worker(_: int) -> None:
    """Initialise a worker: ignore Ctrl-C and SIGTERM, end with the main process, use one thread."""
    begin_helper()
    torch.set_num_threads(1)


def same_size_batches(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Collate samples of various sizes into one batch per run of equal sizes (order kept)."""
    groups: list[list] = []
    for image, label in samples:
        if groups and groups[-1][-1][0].shape == image.shape:
            groups[-1].append((image, label))
        else:
            groups.append([(image, label)])
    return [(torch.stack([i for i, _ in g]), torch.stack([t for _, t in g])) for g in groups]


def evaluation_loader(
    source: EvaluationSource, indices: np.ndarray | list[int], batch: int, workers: int
) -> DataLoader:
    """Loader over ``source[i]`` for some indices, in order.

    Args:
        source: validation samples (input, label).
        indices: of the samples.
        batch: largest number of samples in a forward pass.
        workers: loader processes; 0: none.

    Returns:
        A loader whose items are lists of (images, labels) batches; each batch holds samples of one size.
    """
    return make_loader(Listed(source, indices), workers, batch_size=batch, collate_fn=same_size_batches)


def say_how_read(split: str, *paths: str | os.PathLike[str]) -> None:
    """Print what reading changes in the first image(s) of a split: orientation, scaling of 16 bits or floats."""
    for path in paths:
        for text in picture_notes(path):
            warn(f"note: {split} pictures are read so: {path}: {text}")
