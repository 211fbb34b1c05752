"""Connectivity masks as strings, which configurations, metadata and command lines can hold."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.masks import DOWN, UP, check_mask
from sparsemask.masks.decoder import load_decoder, only_published, wider_refused
from sparsemask.spaces.connectivity.named_masks import is_wider, named_mask

_WHO = "specialised networks and networks with a pruned encoder"
_KINDS = {DOWN: "e", UP: "u"}
_WORD = re.compile(r"(\d+):(\d+[eu]\d+(?:,\d+[eu]\d+)*)")


def mask_word(mask: np.ndarray) -> str:
    """Encode a mask as a string "L:ikj,...": stage i reads feature j of kind e (end point) or u (earlier stage).

    Args:
        mask: bool (L, L, 2).
    """
    connections = (f"{i}{_KINDS[kind]}{j}" for i, j, kind in np.argwhere(mask).tolist())
    return f"{len(mask)}:{','.join(connections)}"


def read_mask(text: str, features: int, seed: int = 0) -> np.ndarray:
    """Read a mask from an encoded string, a file (.npy) or a name (unet, dense, random-15, ...).

    Args:
        text: any of these.
        features: L that the mask must have.
        seed: of random masks.

    Returns:
        Bool (L, L, 2).

    Raises:
        UseError: none of these, a mask of another size, or a decoder of the wider space.
    """
    match = _WORD.fullmatch(text)
    if not match:
        if Path(text).suffix == ".npy" or Path(text).exists():
            mask = only_published(load_decoder(text), text, _WHO)
        elif is_wider(text):
            raise wider_refused(f"mask '{text}'", _WHO)
        else:
            mask = named_mask(text, features, seed)
        return check_mask(mask, features)
    size = int(match[1])
    if size != features:
        raise UseError(f"--connectivity {text[:40]}: of {size} features, the encoder has {features}")
    mask = np.zeros((size, size, 2), dtype=bool)
    for connection in match[2].split(","):
        i, letter, j = re.fullmatch(r"(\d+)([eu])(\d+)", connection).groups()
        if max(int(i), int(j)) >= size:
            raise UseError(f"--connectivity {text[:40]}: {connection} is outside of {size} features")
        mask[int(i), int(j), DOWN if letter == "e" else UP] = True
    return check_mask(mask, features)
