"""Named connectivity masks: classic decoders, random baselines, the published search result."""

from __future__ import annotations

import re

import numpy as np

from sparsemask.errors import UseError, meant
from sparsemask.masks import DOWN, UP

# Wu, Zhang, Huang 2019: the 15 connections found on PASCAL VOC 2012, (stage, feature, kind).
_VOC = (
    ((1, 0, DOWN), (1, 0, UP), (2, 2, DOWN), (2, 0, UP), (3, 3, DOWN), (3, 0, UP))
    + tuple((8, j, DOWN) for j in (0, 1, 2, 3, 8))
    + tuple((8, j, UP) for j in (0, 2, 3, 4))
)

_RANDOM = r"random-(\d{1,6})"


def available_masks() -> list[str]:
    """Return the names that :func:`named_mask` accepts; `random-k` stands for any number k."""
    return ["dense", "random-k", "sparseacn", "sparsemask-voc", "unet"]


def named_mask(name: str, n_features: int, seed: int = 0) -> np.ndarray:
    """Build a named mask for a backbone with `n_features` end points.

    - `dense`: every connection.
    - `unet`: stage 0 takes E_0, stage i takes E_i and the stage before it.
    - `sparseacn`: in the sequence E_{L-1} ... E_0, G, D_0 ..., each stage takes the features 1, 2, 4, 8 and
      16 positions before it (Zhu et al. 2018, arXiv 1801.05895).
    - `sparsemask-voc`: the published result on PASCAL VOC 2012; 9 features only.
    - `random-15`: 15 random connections, the same for the same `seed`; every stage with inputs is used.

    Args:
        name: as above.
        n_features: L, at least 1.
        seed: of random masks.

    Returns:
        Bool (L, L, 2).

    Raises:
        UseError: unknown name, or a mask that does not exist for L features.
    """
    if name == "unet":
        return _from_pairs(n_features, [(i, i, DOWN) for i in range(n_features)] + _chain(n_features))
    if name == "dense":
        mask = np.zeros((n_features, n_features, 2), dtype=bool)
        mask[np.tri(n_features, dtype=bool)] = True
        return mask
    if name == "sparseacn":
        return _from_pairs(n_features, [c for i in range(n_features) for c in _acn_inputs(i)])
    if name == "sparsemask-voc":
        if n_features != 9:
            raise UseError(f"mask 'sparsemask-voc' is for 9 features, this backbone has {n_features}")
        return _from_pairs(n_features, _VOC)
    match = re.fullmatch(_RANDOM, name)
    if match:
        return _random(int(match[1]), n_features, np.random.default_rng(seed))
    raise unknown_mask(name)


def unknown_mask(name: str, *extra: str) -> UseError:
    """The error for an unknown mask name; `extra`: further names that are valid where it was given."""
    known = sorted([*available_masks(), *extra])
    return UseError(
        f"unknown mask '{name}'; {meant(name, known)}known: {', '.join(known)} (for example random-15), or a mask file"
    )


def is_named(name: str) -> bool:
    """Whether :func:`named_mask` knows a name."""
    return name in available_masks() or re.fullmatch(_RANDOM, name) is not None


def _from_pairs(n_features: int, connections) -> np.ndarray:
    mask = np.zeros((n_features, n_features, 2), dtype=bool)
    for connection in connections:
        mask[connection] = True
    return mask


def _chain(n_features: int) -> list[tuple[int, int, int]]:
    return [(i, i, UP) for i in range(1, n_features)]


def _acn_inputs(i: int) -> list[tuple[int, int, int]]:
    inputs = []
    for distance in (1, 2, 4, 8, 16):
        if distance <= i + 1:
            inputs.append((i, i + 1 - distance, UP))
        elif distance - i - 2 <= i:
            inputs.append((i, distance - i - 2, DOWN))
    return inputs


def _random(k: int, n_features: int, rng: np.random.Generator) -> np.ndarray:
    """Grow a decoder from its output stage: a stage is added with its first use and one input."""
    most = n_features * (n_features + 1)
    if not 1 <= k <= most:
        raise UseError(f"mask 'random-{k}': {n_features} features have 1 to {most} connections")
    for _ in range(1000):
        mask = _grow(k, n_features, rng)
        if mask is not None:
            return mask
    raise UseError(f"mask 'random-{k}': no such mask found for {n_features} features; take another number")


def _grow(k: int, n_features: int, rng: np.random.Generator) -> np.ndarray | None:
    mask = np.zeros((n_features, n_features, 2), dtype=bool)
    alive = {n_features - 1}
    remaining = k
    while remaining:
        # An output of a stage not yet alive costs two: its use and its first input.
        free = [
            (i, j, kind)
            for i in sorted(alive)
            for j in range(i + 1)
            for kind in (DOWN, UP)
            if not mask[i, j, kind] and (remaining > 1 or kind == DOWN or j == 0 or j - 1 in alive)
        ]
        if not free:
            return None
        i, j, kind = free[rng.integers(len(free))]
        mask[i, j, kind] = True
        remaining -= 1
        if kind == UP and j and j - 1 not in alive:
            alive.add(j - 1)
            sources = [(c, DOWN) for c in range(j)] + [(0, UP)]
            sources += [(c, UP) for c in range(1, j) if c - 1 in alive]
            mask[(j - 1, *sources[rng.integers(len(sources))])] = True
            remaining -= 1
    return mask
