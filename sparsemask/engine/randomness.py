"""Random states: seeding, and saving and restoring them as tensors and integers.

What must repeat exactly (augmentation, order, connection noise) is drawn from generators that are functions of the
seed and of the position in the run, so that neither the number of workers nor a restart can change it.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed Python, NumPy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, the global generators of Python, NumPy and torch (of the CPU) are seeded; afterwards they are as before.

    Args:
        seed: 0 to 2**32 - 1.
    """
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def step_generator(seed: int, step: int, stream: int = 0) -> torch.Generator:
    """A CPU generator for one step of a run: equal on all processes, independent between streams."""
    entropy = np.random.SeedSequence([seed, stream, step]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(entropy >> np.uint64(1)))


def draw_generator(seed: int, stream: int, draw: int) -> np.random.Generator:
    """A NumPy generator for the `draw`-th sample of a stream."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, stream, draw])))


def draw_words(seed: int, stream: int, draws: np.ndarray) -> np.ndarray:
    """Random words of samples: row k depends on the seed, the stream and `draws[k]` alone.

    The stream is one sequence of a counter-based generator (Philox), in which every sample has a block. Words of a
    hundred samples take as long as one generator of :func:`draw_generator`.

    Args:
        seed: of the run.
        stream: number of the stream.
        draws: (n,) numbers of the samples, close to each other.

    Returns:
        uint64 (n, 4).
    """
    first = int(draws.min())
    key = np.random.SeedSequence([seed, stream]).generate_state(2, np.uint64)
    source = np.random.Philox(key=key, counter=first)
    return source.random_raw(4 * (int(draws.max()) - first + 1)).reshape(-1, 4)[draws - first]


def states() -> dict:
    """All global random states, as tensors and integers (a checkpoint is read without pickle)."""
    version, python, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": torch.tensor(python, dtype=torch.int64),
        "python_version": version,
        "python_gauss": gauss,
        "numpy": torch.from_numpy(keys.astype(np.int64)),
        "numpy_position": int(position),
        "numpy_has_gauss": int(has_gauss),
        "numpy_gauss": float(cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore(saved: dict) -> None:
    """Put back what :func:`states` saved."""
    random.setstate((saved["python_version"], tuple(saved["python"].tolist()), saved["python_gauss"]))
    keys = saved["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, saved["numpy_position"], saved["numpy_has_gauss"], saved["numpy_gauss"]))
    torch.set_rng_state(saved["torch"])
    if saved["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(saved["cuda"][: torch.cuda.device_count()])
