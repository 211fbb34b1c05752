"""A connectivity mask as one word, so that a configuration, a file's metadata and a command line can hold it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.masks import DOWN, UP, check_mask, load_mask
from sparsemask.spaces.connectivity.named_masks import named_mask

_KINDS = {DOWN: "e", UP: "u"}
_WORD = re.compile(r"(\d+):(\d+[eu]\d+(?:,\d+[eu]\d+)*)")


def mask_word(mask: np.ndarray) -> str:
    """A mask (L, L, 2) as "L:ikj,...": stage i takes feature j of kind e, an end point, or u, an earlier stage's."""
    taken = (f"{i}{_KINDS[kind]}{j}" for i, j, kind in np.argwhere(mask).tolist())
    return f"{len(mask)}:{','.join(taken)}"


def read_mask(text: str, features: int, seed: int = 0) -> np.ndarray:
    """The mask that a word, a file (.npy) or a name (unet, dense, random-15, ...) says, for so many features.

    Raises UseError where it is none of these, or does not fit.
    """
    found = _WORD.fullmatch(text)
    if not found:
        mask = (
            load_mask(text) if Path(text).suffix == ".npy" or Path(text).exists() else named_mask(text, features, seed)
        )
        return check_mask(mask, features)
    size = int(found[1])
    if size != features:
        raise UseError(f"--connectivity {text[:40]}: of {size} features, the encoder has {features}")
    mask = np.zeros((size, size, 2), dtype=bool)
    for one in found[2].split(","):
        i, letter, j = re.fullmatch(r"(\d+)([eu])(\d+)", one).groups()
        if max(int(i), int(j)) >= size:
            raise UseError(f"--connectivity {text[:40]}: {one} is outside of {size} features")
        mask[int(i), int(j), DOWN if letter == "e" else UP] = True
    return check_mask(mask, features)
