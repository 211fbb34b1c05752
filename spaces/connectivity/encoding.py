"""Connectivity masks as strings, which configurations, metadata and command lines can hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.masks import DOWN, UP, check_mask
from sparsemask.masks.decoder import DecoderMask, check_decoder, connections_of, decoder_mask, load_decoder
from sparsemask.spaces.connectivity.named_masks import named_mask

_KINDS = {DOWN: "e", UP: "u"}
_CONTEXT = ";context"
_WORD = re.compile(r"(\d{1,4}):(\d+[eu]\d+(?:,\d+[eu]\d+)*)(?:;(\d+x\d+x\d+(?:,\d+x\d+x\d+)*)(;context)?)?")


def mask_word(mask: np.ndarray | DecoderMask) -> str:
    """Encode a mask as a string "L:ikj,...": stage i reads feature j of kind e (end point) or u (earlier stage).

    A decoder of the wider space adds ";ixOxW,...": operation O and width W of stage i, and ";context".

    Args:
        mask: bool (L, L, 2), or a decoder of the wider space.
    """
    connections = (f"{i}{_KINDS[kind]}{j}" for i, j, kind in np.argwhere(connections_of(mask)).tolist())
    word = f"{len(mask)}:{','.join(connections)}"
    if not isinstance(mask, DecoderMask):
        return word
    stages = ",".join(f"{i}x{mask.operations[i]}x{mask.widths[i]}" for i in mask.stages)
    return f"{word};{stages}{_CONTEXT if mask.context else ''}"


def read_mask(
    text: str, features: int, seed: int = 0, strides: Sequence[int] | None = None, depth: int = 64
) -> np.ndarray | DecoderMask:
    """Read a mask from an encoded string, a file (.npy) or a name (unet, fpn, random-15, ...).

    Args:
        text: any of these.
        features: L that the mask must have.
        seed: of random masks.
        strides: of the L end points, deepest first; names of the wider space need them.
        depth: channels of the stages of such a name.

    Returns:
        Bool (L, L, 2), or a decoder of the wider space.

    Raises:
        UseError: none of these, or a mask of another size.
    """
    match = _WORD.fullmatch(text)
    if not match:
        if Path(text).suffix == ".npy" or Path(text).exists():
            return check_decoder(load_decoder(text), features)
        return check_decoder(named_mask(text, features, seed, strides, depth), features)
    size, what = int(match[1]), f"--connectivity {text[:40]}"
    if size != features:
        raise UseError(f"{what}: of {size} features, the encoder has {features}")
    mask = np.zeros((size, size, 2), dtype=bool)
    for connection in match[2].split(","):
        i, letter, j = re.fullmatch(r"(\d+)([eu])(\d+)", connection).groups()
        if max(int(i), int(j)) >= size:
            raise UseError(f"{what}: {connection} is outside of {size} features")
        mask[int(i), int(j), DOWN if letter == "e" else UP] = True
    if match[3] is None:
        return check_mask(mask, features)
    operations, widths = [0] * size, [0] * size
    for stage in match[3].split(","):
        i, operation, width = map(int, stage.split("x"))
        if i >= size:
            raise UseError(f"{what}: stage {i} is outside of {size} features")
        operations[i], widths[i] = operation, width
    return decoder_mask(mask, operations, widths, bool(match[4]), what)
