"""Which connections a network has, from what a user may name: a mask file, a named mask, the baseline `fcn`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sparsemask import masks
from sparsemask.errors import UseError
from sparsemask.spaces import backbones
from sparsemask.spaces.connectivity.carry import PUBLIC, fit_mask
from sparsemask.spaces.connectivity.named_masks import is_named, named_mask, unknown_mask

BASELINE = "fcn"
_PUBLISHED = "sparsemask-voc"


@dataclass(frozen=True)
class Mask:
    """The connections of a network, fitted to its backbone.

    Attributes:
        connections: bool (L, L, 2); None is the baseline `fcn`, a classifier on the encoder without a decoder.
        note: where they come from, for the json beside a mask file.
        lines: what was done to carry them to the backbone, in words.
    """

    connections: np.ndarray | None
    note: Mapping[str, Any] = field(default_factory=dict)
    lines: tuple[str, ...] = ()

    @classmethod
    def of_checkpoint(cls, entry: torch.Tensor | str) -> Mask:
        """The mask of a checkpoint's entry `mask`; UseError where it is a word that stands for none."""
        if isinstance(entry, str) and entry != BASELINE:
            raise unknown_mask(entry, BASELINE)
        return cls(entry.numpy() if isinstance(entry, torch.Tensor) else None)

    @property
    def entry(self) -> torch.Tensor | str:
        """What a checkpoint holds of it."""
        return BASELINE if self.connections is None else torch.from_numpy(self.connections)

    @property
    def argument(self) -> np.ndarray | str:
        """What :meth:`sparsemask.spaces.Space.network` takes."""
        return BASELINE if self.connections is None else self.connections


def resolve_mask(source: str | None, backbone: str, seed: int = 0) -> Mask:
    """The mask that a flag names, fitted to a backbone.

    Args:
        source: a mask file, which is carried where it was made for other strides, a name of
            :func:`sparsemask.spaces.connectivity.named_masks.available_masks`, or `fcn`.
        backbone: name of the encoder.
        seed: of random masks.

    Raises:
        UseError: no mask is named, it is unknown or unreadable, or nothing of it can be carried to the backbone.
    """
    if source is None:
        raise UseError("--mask_path is missing: a mask file (prune/prune.py writes one) or a named mask")
    if source != BASELINE and (Path(source).suffix == ".npy" or Path(source).exists()):
        return _fitted(masks.load_mask(source), masks.mask_note(source), backbone, source)
    if source == _PUBLISHED:
        return _fitted(named_mask(source, 9), {"backbone_name": PUBLIC}, backbone, source)
    if source != BASELINE and not is_named(source):
        raise unknown_mask(source, BASELINE)
    strides = backbones.strides(backbone)
    connections = None if source == BASELINE else named_mask(source, len(strides), seed)
    return Mask(connections, {"backbone_name": backbone, "strides": strides})


def _fitted(connections: np.ndarray, note: dict[str, Any], backbone: str, source: str) -> Mask:
    connections, note, lines = fit_mask(connections, note, backbone, source)
    return Mask(connections, note, tuple(lines))
