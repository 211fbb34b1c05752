"""Which decoder a network has, from what a user may name: a mask file, a named mask, the baseline `fcn`.

Masks of another backbone are carried over, and masks are printed as text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsemask import masks
from sparsemask.command_lines import spoken
from sparsemask.errors import UseError
from sparsemask.masks import DOWN, UP, count_connections, why_unusable
from sparsemask.masks.decoder import (
    OPERATIONS,
    DecoderMask,
    check_decoder,
    connections_of,
    decoder_mask,
    load_decoder,
)
from sparsemask.spaces import backbones
from sparsemask.spaces.connectivity.named_masks import is_named, named_mask, unknown_mask

BASELINE = "fcn"
# Masks of nine features that do not say where they come from are the public ones.
PUBLIC = "mobilenet_v2"
_PUBLISHED = "sparsemask-voc"


@dataclass(frozen=True)
class Mask:
    """The decoder of a network, fitted to its backbone.

    Attributes:
        decoder: bool (L, L, 2) of the published space, or a decoder of the wider one; None is the baseline `fcn`, a
            classifier on the encoder without a decoder.
        note: where it comes from, for the json beside a mask file.
        lines: what was done to carry it to the backbone, in words.
    """

    decoder: np.ndarray | DecoderMask | None
    note: Mapping[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()

    @classmethod
    def of_checkpoint(cls, entry: torch.Tensor | str) -> Mask:
        """The mask of a checkpoint's entry `mask`; UseError where it is a word that stands for none."""
        if isinstance(entry, str) and entry != BASELINE:
            raise unknown_mask(entry, BASELINE)
        if not isinstance(entry, torch.Tensor):
            return cls(None)
        return cls(entry.numpy() if entry.dtype == torch.bool else DecoderMask.unpack(entry))

    @property
    def connections(self) -> np.ndarray | None:
        """Bool (L, L, 2) of either space; None of the baseline."""
        return None if self.decoder is None else connections_of(self.decoder)

    @property
    def entry(self) -> torch.Tensor | str:
        """What a checkpoint holds of it."""
        if isinstance(self.decoder, DecoderMask):
            return self.decoder.packed()
        return BASELINE if self.decoder is None else torch.from_numpy(self.decoder)

    @property
    def argument(self) -> np.ndarray | DecoderMask | str:
        """What :meth:`sparsemask.spaces.Space.network` takes."""
        return BASELINE if self.decoder is None else self.decoder


def resolve_mask(source: str | None, backbone: str, seed: int = 0, depth: int = 64) -> Mask:
    """The mask that a flag names, fitted to a backbone.

    Args:
        source: a mask file of either space, which is carried where it was made for other strides, a name of
            :func:`sparsemask.spaces.connectivity.named_masks.available_masks`, or `fcn`.
        backbone: name of the encoder.
        seed: of random masks.
        depth: channels of the stages of named decoders of the wider space.

    Raises:
        UseError: no mask is named, it is unknown or unreadable, or nothing of it can be carried to the backbone.
    """
    if source is None:
        raise UseError(f"--mask_path is missing: a mask file ({spoken('prune')} writes one) or a named mask")
    if source != BASELINE and (Path(source).suffix == ".npy" or Path(source).exists()):
        return _fitted(load_decoder(source), masks.mask_note(source), backbone, source)
    if source == _PUBLISHED:
        return _fitted(named_mask(source, 9), {"backbone_name": PUBLIC}, backbone, source)
    if source != BASELINE and not is_named(source):
        raise unknown_mask(source, BASELINE)
    strides = backbones.strides(backbone)
    decoder = None if source == BASELINE else named_mask(source, len(strides), seed, strides, depth)
    return Mask(decoder, {"backbone_name": backbone, "strides": strides})


def _fitted(decoder: np.ndarray | DecoderMask, note: dict[str, Any], backbone: str, source: str) -> Mask:
    decoder, note, lines = fit_mask(decoder, note, backbone, source)
    return Mask(decoder, note, tuple(lines))


def carry_mask(
    mask: np.ndarray | DecoderMask, strides_from: Sequence[int], strides_to: Sequence[int]
) -> np.ndarray | DecoderMask:
    """The mask for a backbone with end points of other strides (arXiv 1904.07642, section 4.3).

    Features are matched by spatial size, what has no match is dropped:

    1. Of the features of one stride the k-th deepest here goes to the k-th deepest there; those that are left over
       here join the last of that stride there (MobileNetV2's three of stride 32 become ResNet's one, and what took
       any of them takes it), those left over there get nothing. A stride that is absent there has no match.
    2. Decoder stages go where the feature of their size goes; the output stage stays the output stage, whatever its
       size, for it is matched by its part. The global average is matched by its part, too.
    3. A connection goes with its two ends; without one of them it is dropped. Stages that become one share their
       inputs and uses; what one of them took from another falls away, since it is now the same stage.
    4. Stages left without inputs lose their uses, and stages that no longer reach the output are removed.

    In the wider space, too, an output stage that is the last one stays the last one. One that is not goes where the
    feature of its size goes; without a match it becomes the shallowest stage that is coarser. Operations and widths go
    with their stages; stages that become one have the last one's. A context block stays at the deepest stage.

    So every connection carried stands for at least one of the mask's; `unet` and `dense` remain what they are where
    no stride is lost. Equal strides give the mask as it is.

    Args:
        mask: bool (L, L, 2), see :mod:`sparsemask.masks`, or a decoder of the wider space.
        strides_from: strides of the end points of the mask's backbone, deepest first.
        strides_to: those of the other backbone.

    Returns:
        Bool (L', L', 2), or a decoder of the wider space.

    Raises:
        UseError: no connection to the output stage remains.
    """
    mask = check_decoder(mask, len(strides_from))
    if list(strides_from) == list(strides_to):
        return mask
    matches = _match(strides_from, strides_to)
    stages = [*matches[:-1], len(strides_to) - 1]
    last = output = len(strides_to) - 1
    if isinstance(mask, DecoderMask) and mask.output < len(mask) - 1:
        if stages[mask.output] is None:
            coarser = [k for k, stride in enumerate(strides_to) if stride > strides_from[mask.output]]
            stages[mask.output] = coarser[-1] if coarser else 0
        output = stages[mask.output]
    carried = np.zeros((last + 1, last + 1, 2), dtype=bool)
    for i, j, kind in np.argwhere(connections_of(mask)).tolist():
        stage, source = stages[i], matches[j]
        if kind == UP:
            giver = stages[j - 1] if j else -1  # the global average is u_0
            source = None if giver is None or giver == stage else giver + 1
        if stage is not None and source is not None:
            carried[stage, source, kind] = True
    for stage in range(output):
        if not carried[stage].any():
            carried[:, stage + 1, UP] = False
    for stage in range(output - 1, -1, -1):
        if not carried[:, stage + 1, UP].any():
            carried[stage] = False
    if why_unusable(carried[: output + 1, : output + 1]):
        raise UseError(
            f"the mask cannot be carried from strides {_listed(strides_from)} to {_listed(strides_to)}: nothing is "
            "left for the output stage; search with this backbone"
        )
    if not isinstance(mask, DecoderMask):
        return carried
    operations, widths = np.zeros((2, last + 1), dtype=np.int32)
    for i in mask.stages:  # of stages that become one, the last one's stay
        if stages[i] is not None:
            operations[stages[i]], widths[stages[i]] = mask.operations[i], mask.widths[i]
    return decoder_mask(carried, operations, widths, mask.context)


def _match(strides_from: Sequence[int], strides_to: Sequence[int]) -> list[int | None]:
    """Index of the matching feature of the other backbone for each feature, None without one; non-decreasing."""
    by_stride: dict[int, list[int]] = {}
    for index, stride in enumerate(strides_to):
        by_stride.setdefault(stride, []).append(index)
    ranks: dict[int, int] = {}
    matched = []
    for stride in strides_from:
        rank = ranks[stride] = ranks.get(stride, -1) + 1
        matched.append(by_stride[stride][min(rank, len(by_stride[stride]) - 1)] if stride in by_stride else None)
    return matched


def origin(note: dict, n_features: int, what: object = "mask") -> tuple[str | None, list[int] | None]:
    """Determine the backbone that a mask was made for, from the note beside its file.

    Without a note, a mask of nine features is taken for a public one (MobileNetV2).

    Args:
        note: content of the mask's json file; empty if there is none.
        n_features: L, the mask's number of features.
        what: the mask's name in errors.

    Returns:
        The backbone's name and strides; None for what is unknown.

    Raises:
        UseError: mask and note disagree.
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
    valid = isinstance(strides, list) and all(type(s) is int and s > 0 for s in strides)
    if not valid or len(strides) != n_features or strides != sorted(strides, reverse=True):
        raise UseError(
            f"{what}: the note beside it does not fit: {n_features} features, but strides {strides!r:.80} "
            f"(backbone {name})"
        )
    return name, strides


def fit_mask(
    mask: np.ndarray | DecoderMask, note: dict, backbone_name: str, what: object = "mask"
) -> tuple[np.ndarray | DecoderMask, dict, list[str]]:
    """Adapt a mask to a backbone; it is carried over (:func:`carry_mask`) if it was made for other strides.

    Args:
        mask: bool (L, L, 2), or a decoder of the wider space.
        note: content of the mask's json file; empty if there is none.
        backbone_name: the network's backbone.
        what: the mask's name in errors.

    Returns:
        The mask, its note and lines that say what was done. The note of a carried mask has an entry `carried_from`:
        the old note with backbone, strides and number of connections.

    Raises:
        UseError: a mask of unknown origin with another number of features, or one that cannot be carried.
    """
    name, strides_from = origin(note, len(mask), what)
    strides = backbones.strides(backbone_name)
    target = {"backbone_name": backbone_name, "strides": strides}
    if strides_from is None or strides_from == strides:
        return check_decoder(mask, len(strides), str(what)), {**note, **target}, []
    carried = carry_mask(mask, strides_from, strides)
    before, after = (count_connections(connections_of(m)) for m in (mask, carried))
    origins = {**note, "mask_path": str(what), "backbone_name": name, "strides": strides_from, "connections": before}
    lines = [
        f"mask carried from {name or 'another backbone'} (strides {_listed(strides_from)}) to {backbone_name} "
        f"({_listed(strides)}): {before} connections become {after}",
        *mask_lines(carried, strides),
    ]
    return carried, {**target, "connections": after, "carried_from": origins}, lines


def mask_lines(mask: np.ndarray | DecoderMask, strides: Sequence[int] | None = None) -> list[str]:
    """Return the mask as text, a line for each stage with inputs, deepest first: ``stage 3 (/16) <- E_3, G, D_1``.

    In the wider space with operation and width: ``stage 3 (/16, 3x3, 48 channels, context) <- E_3, D_1``.
    """
    lines = []
    for i, row in enumerate(connections_of(mask)):
        names = [f"E_{j}" for j in np.flatnonzero(row[:, DOWN])]
        names += [f"D_{j - 1}" if j else "G" for j in np.flatnonzero(row[:, UP])]
        words = [f"/{strides[i]}"] if strides is not None else []
        if isinstance(mask, DecoderMask):
            words += [OPERATIONS[mask.operations[i]], f"{mask.widths[i]} channels"]
            words += ["context"] if mask.context and i == mask.stages[0] else []
        size = f" ({', '.join(words)})" if words else ""
        if names:
            lines.append(f"stage {i}{size} <- {', '.join(names)}")
    return lines


def _listed(strides: Sequence[int]) -> str:
    return ", ".join(map(str, strides))
