"""Which decoder a network has, from what a user may name: a mask file, a named mask, the baseline `fcn`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsemask import masks
from sparsemask.errors import UseError
from sparsemask.masks.decoder import DecoderMask, connections_of, load_decoder
from sparsemask.spaces import backbones
from sparsemask.spaces.connectivity.carry import PUBLIC, fit_mask
from sparsemask.spaces.connectivity.named_masks import is_named, named_mask, unknown_mask

BASELINE = "fcn"
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
        raise UseError("--mask_path is missing: a mask file (prune/prune.py writes one) or a named mask")
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
