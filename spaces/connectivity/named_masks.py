"""Named masks: classic decoders of both spaces, random baselines, the published search result."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from sparsemask.errors import UseError, meant
from sparsemask.masks import DOWN, UP
from sparsemask.masks.decoder import FULL, OPERATIONS, POINTWISE, DecoderMask, decoder_mask

# Wu, Zhang, Huang 2019: the 15 connections found on PASCAL VOC 2012, (stage, feature, kind).
_VOC = (
    ((1, 0, DOWN), (1, 0, UP), (2, 2, DOWN), (2, 0, UP), (3, 3, DOWN), (3, 0, UP))
    + tuple((8, j, DOWN) for j in (0, 1, 2, 3, 8))
    + tuple((8, j, UP) for j in (0, 2, 3, 4))
)

_RANDOM = r"random-(\d{1,6})"


_WIDER = ("fpn", "unet-3x3")  # decoders of the wider space
_FINEST = 4  # stride of their output


def available_masks() -> list[str]:
    """Return the names that :func:`named_mask` accepts; `random-k` stands for any number k."""
    return sorted(["dense", "random-k", "sparseacn", "sparsemask-voc", "unet", *_WIDER])


def named_mask(
    name: str, n_features: int, seed: int = 0, strides: Sequence[int] | None = None, depth: int = 64
) -> np.ndarray | DecoderMask:
    """Build a named mask for a backbone with `n_features` end points.

    Of the published space:

    - `dense`: every connection.
    - `unet`: stage 0 takes E_0, stage i takes E_i and the stage before it.
    - `sparseacn`: in the sequence E_{L-1} ... E_0, G, D_0 ..., each stage takes the features 1, 2, 4, 8 and
      16 positions before it (Zhu et al. 2018, arXiv 1801.05895).
    - `sparsemask-voc`: the published result on PASCAL VOC 2012; 9 features only.
    - `random-15`: 15 random connections, the same for the same `seed`; every stage with inputs is used.

    Of the wider space, every stage with a 3x3 convolution and `depth` channels, the output at stride 4:

    - `fpn`: a stage of each stride from the deepest to 4, which takes the deepest end point of its stride and the stage
      before it; the output stage takes all of them (Lin et al. 2017, arXiv 1612.03144).
    - `unet-3x3`: `unet` without the stages of strides below 4.

    Args:
        name: as above.
        n_features: L, at least 1.
        seed: of random masks.
        strides: of the L end points, deepest first; decoders of the wider space need them.
        depth: channels of the stages of the wider space, a multiple of 8.

    Returns:
        Bool (L, L, 2), or a decoder of the wider space.

    Raises:
        UseError: unknown name, or a mask that does not exist for these features.
    """
    if name in _WIDER:
        if strides is None or len(strides) != n_features:
            raise UseError(f"mask '{name}': needs the strides of the backbone's {n_features} end points")
        return _classic(name, strides, depth)
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


def random_decoder(
    rng: np.random.Generator,
    n_features: int,
    strides: Sequence[int],
    widths: Sequence[int] = (16, 24, 32, 48, 64),
) -> DecoderMask:
    """Draw a decoder of the wider space, of any shape; all are usable, and a sixth is of the published space.

    The output stage is drawn first (of stride 2, 4, 8 or 16, each as likely), then the deepest end point, the number of
    stages and which they are, one use for each of them, how many of all possible inputs are added, and at last
    operations, widths and context, which are alike for all stages in half of the decoders.

    Args:
        rng: draws everything.
        n_features: L.
        strides: of the L end points, deepest first.
        widths: channels to choose from, multiples of 8.

    Raises:
        UseError: other than L strides, or a width that is not allowed.
    """
    if len(strides) != n_features:
        raise UseError(f"a backbone of {n_features} end points has as many strides, not {len(strides)}")
    published = rng.random() < 1 / 6
    output = n_features - 1
    if not published:
        known = sorted({s for s in strides if s in (2, 4, 8, 16)}) or [strides[-1]]
        stride = known[rng.integers(len(known))]
        output = int(rng.choice([i for i, s in enumerate(strides) if s == stride]))
    deepest = int(rng.integers(output + 1))
    others = rng.permutation(np.arange(deepest, output))[: rng.integers(output - deepest + 1)]
    stages = [*sorted(int(i) for i in others), output]
    takes = np.zeros((n_features, n_features, 2), dtype=bool)
    for stage in stages[:-1]:
        later = [i for i in stages if i > stage]
        takes[later[rng.integers(len(later))], stage + 1, UP] = True
    share = rng.random() ** 2
    for stage in stages:
        free = [(j, DOWN) for j in range(deepest, stage + 1)] + [(i + 1, UP) for i in stages if i < stage]
        free += [(0, UP)] if not deepest else []
        for place, chosen in zip(free, rng.random(len(free)) < share, strict=True):
            takes[(stage, *place)] |= chosen
        if not takes[stage].any():
            takes[(stage, *free[rng.integers(len(free))])] = True
    alike = published or rng.random() < 0.5
    operations, channels = (
        rng.choice(choices, 1 if alike else n_features).repeat(n_features if alike else 1)
        for choices in ([POINTWISE] if published else range(len(OPERATIONS)), list(widths))
    )
    return decoder_mask(takes, operations, channels, not published and bool(rng.random() < 0.3))


def unknown_mask(name: str, *extra: str) -> UseError:
    """The error for an unknown mask name; `extra`: further names that are valid where it was given."""
    known = sorted([*available_masks(), *extra])
    return UseError(
        f"unknown mask '{name}'; {meant(name, known)}known: {', '.join(known)} (for example random-15), or a mask file"
    )


def is_named(name: str) -> bool:
    """Whether :func:`named_mask` knows a name."""
    return name in available_masks() or re.fullmatch(_RANDOM, name) is not None


def is_wider(name: str) -> bool:
    """Whether a name is of a decoder of the wider space."""
    return name in _WIDER


def _classic(name: str, strides: Sequence[int], depth: int) -> DecoderMask:
    """A decoder of the wider space down to stride 4: `fpn` or `unet-3x3`."""
    stages = [i for i, stride in enumerate(strides) if stride >= _FINEST]
    if not stages:
        raise UseError(f"mask '{name}': no end point of stride {_FINEST} or more, this backbone has {list(strides)}")
    if name == "fpn":
        stages = [i for i in stages if i == 0 or strides[i] != strides[i - 1]]
    chain = [(i, before + 1, UP) for before, i in zip(stages, stages[1:], strict=False)]
    levels = [(stages[-1], i + 1, UP) for i in stages[:-1]] if name == "fpn" else []
    n_features = len(strides)
    takes = _from_pairs(n_features, [(i, i, DOWN) for i in stages] + chain + levels)
    return decoder_mask(takes, [FULL] * n_features, [depth] * n_features, what=f"mask '{name}'")


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
