"""A mask searched on one backbone carried to another (arXiv 1904.07642, section 4.3), and masks in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsemask.errors import UseError
from sparsemask.masks import DOWN, UP, check_mask, count_connections, why_unusable
from sparsemask.spaces import backbones

# Masks of nine features that do not say where they come from are the public ones.
PUBLIC = "mobilenet_v2"


def carry_mask(mask: np.ndarray, strides_from: Sequence[int], strides_to: Sequence[int]) -> np.ndarray:
    """The mask for a backbone with end points of other strides, bool (L', L', 2).

    Features are matched by spatial size, what has no match is dropped:

    1. Of the features of one stride the k-th deepest here goes to the k-th deepest there; those that are left over
       here join the last of that stride there (MobileNetV2's three of stride 32 become ResNet's one, and what took
       any of them takes it), those left over there get nothing. A stride that is absent there has no match.
    2. Decoder stages go where the feature of their size goes; the output stage stays the output stage, whatever its
       size, for it is matched by its part. The global average is matched by its part, too.
    3. A connection goes with its two ends; without one of them it is dropped. Stages that become one share their
       inputs and uses; what one of them took from another falls away, since it is now the same stage.
    4. Stages left without inputs lose their uses, and stages that no longer reach the output are removed.

    So every connection carried stands for at least one of the mask's; `unet` and `dense` remain what they are where
    no stride is lost. Equal strides give the mask as it is.

    Args:
        mask: bool (L, L, 2), see :mod:`sparsemask.masks`.
        strides_from, strides_to: strides of the end points, deepest first, of the mask's backbone and the other.

    Raises UseError where nothing is left for the output stage.
    """
    mask = check_mask(mask, len(strides_from))
    if list(strides_from) == list(strides_to):
        return mask
    places = _match(strides_from, strides_to)
    stages = [*places[:-1], len(strides_to) - 1]
    carried = np.zeros((len(strides_to), len(strides_to), 2), dtype=bool)
    for i, j, kind in np.argwhere(mask).tolist():
        stage, source = stages[i], places[j]
        if kind == UP:
            giver = stages[j - 1] if j else -1  # the global average is u_0
            source = None if giver is None or giver == stage else giver + 1
        if stage is not None and source is not None:
            carried[stage, source, kind] = True
    for stage in range(len(carried) - 1):
        if not carried[stage].any():
            carried[:, stage + 1, UP] = False
    for stage in range(len(carried) - 2, -1, -1):
        if not carried[:, stage + 1, UP].any():
            carried[stage] = False
    if why_unusable(carried):
        raise UseError(
            f"the mask cannot be carried from strides {_listed(strides_from)} to {_listed(strides_to)}: nothing is "
            "left for the output stage; search with this backbone"
        )
    return carried


def _match(strides_from: Sequence[int], strides_to: Sequence[int]) -> list[int | None]:
    """The feature there of each feature here, None without a match; never decreasing."""
    there: dict[int, list[int]] = {}
    for place, stride in enumerate(strides_to):
        there.setdefault(stride, []).append(place)
    seen: dict[int, int] = {}
    matched = []
    for stride in strides_from:
        rank = seen[stride] = seen.get(stride, -1) + 1
        matched.append(there[stride][min(rank, len(there[stride]) - 1)] if stride in there else None)
    return matched


def origin(note: dict, n_features: int, what: object = "mask") -> tuple[str | None, list[int] | None]:
    """The backbone a mask was made for and its strides, from the note beside it; None for what is unknown.

    Without a note, nine features are the public masks' (MobileNetV2). UseError where mask and note disagree.
    """
    name, strides = note.get("backbone_name"), note.get("strides")
    if not name and strides is None and n_features == len(backbones.strides(PUBLIC)):
        name = PUBLIC
    if name and strides is None:
        try:
            strides = backbones.strides(str(name))
        except UseError as error:
            raise UseError(f"{what}: by the note beside it, it is for another backbone: {error}") from None
    if strides is None:
        return None, None
    whole = isinstance(strides, list) and all(type(s) is int and s > 0 for s in strides)
    if not whole or len(strides) != n_features or strides != sorted(strides, reverse=True):
        raise UseError(
            f"{what}: the note beside it does not fit: {n_features} features, but strides {strides!r:.80} "
            f"(backbone {name})"
        )
    return name, strides


def fit_mask(
    mask: np.ndarray, note: dict, backbone_name: str, what: object = "mask"
) -> tuple[np.ndarray, dict, list[str]]:
    """A mask for `backbone_name`, carried to it where it was made for other strides; its note; what was done, in words.

    Args:
        mask: bool (L, L, 2).
        note: what the json file beside the mask says; empty when there is none.
        backbone_name: the backbone that the network will have.
        what: the mask's name in errors.

    A carried mask's note has an entry `carried_from`: the old note with backbone, strides and connections. UseError
    for a mask of unknown origin with another number of features, and where nothing can be carried.
    """
    name, strides_from = origin(note, len(mask), what)
    strides = backbones.strides(backbone_name)
    settled = {"backbone_name": backbone_name, "strides": strides}
    if strides_from is None or strides_from == strides:
        return check_mask(mask, len(strides), str(what)), {**note, **settled}, []
    carried = carry_mask(mask, strides_from, strides)
    before, after = count_connections(mask), count_connections(carried)
    origins = {**note, "mask_path": str(what), "backbone_name": name, "strides": strides_from, "connections": before}
    lines = [
        f"mask carried from {name or 'another backbone'} (strides {_listed(strides_from)}) to {backbone_name} "
        f"({_listed(strides)}): {before} connections become {after}",
        *mask_lines(carried, strides),
    ]
    return carried, {**settled, "connections": after, "carried_from": origins}, lines


def mask_lines(mask: np.ndarray, strides: Sequence[int] | None = None) -> list[str]:
    """The mask in words, a line for each stage with inputs: ``stage 3 (/16) <- E_3, G, D_1``, deepest first."""
    lines = []
    for i, row in enumerate(mask):
        names = [f"E_{j}" for j in np.flatnonzero(row[:, DOWN])]
        names += [f"D_{j - 1}" if j else "G" for j in np.flatnonzero(row[:, UP])]
        size = f" (/{strides[i]})" if strides is not None else ""
        if names:
            lines.append(f"stage {i}{size} <- {', '.join(names)}")
    return lines


def _listed(strides: Sequence[int]) -> str:
    return ", ".join(map(str, strides))
