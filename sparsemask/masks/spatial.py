"""Files of fine-grained masks over locations and channels.

A `.npz` file of plain arrays (no pickle): format version, space, task, the connectivity mask (L, L, 2) or none, a
channel mask for each module, the threshold of the data masks on P(keep), the kept fractions that were measured with
the data they were measured on, and the SHA-256 of the checkpoint that holds the weights, mask branches included. Data
masks depend on the image and are no part of the file: the branches that predict them are in the checkpoint.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sparsemask.errors import UseError, one_line
from sparsemask.files import sha256
from sparsemask.masks import npz
from sparsemask.masks.decoder import check_mask

__all__ = [
    "FORMAT",
    "FineMasks",
    "load_masks",
    "replace",
    "save_masks",
]

FORMAT = 1
_CHANNELS, _KEPT = "channels/", "kept/"


@dataclass(frozen=True)
class FineMasks:
    """Hard masks of a network and their origin."""

    space: str
    task: str
    channels: Mapping[str, np.ndarray]
    """Module name -> bool (layers, channels) or (channels,): True is dense, computed everywhere."""
    sha256: str
    """Of the checkpoint file that holds the weights."""
    threshold: float = 0.5
    """A location is kept where P(keep) is above it; 0.5 is the argmax."""
    kept: Mapping[str, float] = field(default_factory=dict)
    """Module name -> measured share of channels x locations that is computed, in [0, 1]."""
    measured_on: str = ""
    """The data on which `kept` was measured, in words."""
    config: Mapping[str, object] = field(default_factory=dict)
    """What the space needs to build the network: plain numbers and words by name."""
    checkpoint: str | None = None
    """Where the checkpoint lay when the masks were made."""
    connectivity: np.ndarray | None = None
    """(L, L, 2) bool where the network's connections were searched too."""
    kept_whole: float | None = None
    """`kept` of the whole network, where modules count by their cost; None: they count alike."""

    @property
    def mean_kept(self) -> float | None:
        """Measured kept fraction of the network in [0, 1]; None where nothing was measured."""
        if self.kept_whole is not None:
            return self.kept_whole
        return float(np.mean(list(self.kept.values()))) if self.kept else None

    def check_weights(self, path: str | os.PathLike, what: str = "mask") -> None:
        """Raise UseError unless `path` is, byte for byte, the checkpoint that the masks were made from."""
        if not Path(path).is_file():
            raise UseError(f"checkpoint not found: {path}")
        digest = sha256(path)
        if digest != self.sha256:
            raise UseError(
                f"{what}: made from another checkpoint than {path} (SHA-256 {self.sha256[:12]}..., this one has "
                f"{digest[:12]}...); masks and weights belong together: prune that checkpoint"
            )


def save_masks(path: str | os.PathLike, masks: FineMasks) -> None:
    """Write checked masks to `path` (.npz), atomically."""
    path = npz.checked(path, "a fine-grained mask")
    _check(masks, str(path))
    arrays: dict[str, np.ndarray] = {
        "format": np.array(FORMAT),
        "space": np.array(masks.space),
        "task": np.array(masks.task),
        "threshold": np.array(float(masks.threshold)),
        "sha256": np.array(masks.sha256),
        "measured_on": np.array(masks.measured_on),
        "config": np.array(json.dumps(dict(masks.config), sort_keys=True)),
    }
    if masks.kept_whole is not None:
        arrays["kept_whole"] = np.array(float(masks.kept_whole))
    if masks.checkpoint is not None:
        arrays["checkpoint"] = np.array(str(masks.checkpoint))
    if masks.connectivity is not None:
        arrays["connectivity"] = masks.connectivity
    arrays |= {f"{_CHANNELS}{name}": np.asarray(mask) for name, mask in masks.channels.items()}
    arrays |= {f"{_KEPT}{name}": np.array(float(value)) for name, value in masks.kept.items()}
    npz.write(path, arrays)


def load_masks(path: str | os.PathLike) -> FineMasks:
    """Read and check masks.

    Args:
        path: the `.npz` file.

    Raises:
        UseError: the file is missing, truncated, of another kind, or of a newer version.
    """
    path = npz.checked(path, "a fine-grained mask")
    needed = ("space", "task", "threshold", "sha256", "config")
    arrays = npz.read(path, "a file of fine-grained masks", needed, FORMAT)
    try:
        config = json.loads(str(arrays["config"]))
        masks = FineMasks(
            space=str(arrays["space"]),
            task=str(arrays["task"]),
            channels={k.removeprefix(_CHANNELS): v for k, v in arrays.items() if k.startswith(_CHANNELS)},
            sha256=str(arrays["sha256"]),
            threshold=float(arrays["threshold"]),
            kept={k.removeprefix(_KEPT): float(v) for k, v in arrays.items() if k.startswith(_KEPT)},
            kept_whole=float(arrays["kept_whole"]) if "kept_whole" in arrays else None,
            measured_on=str(arrays.get("measured_on", "")),
            config=config,
            checkpoint=str(arrays["checkpoint"]) if "checkpoint" in arrays else None,
            connectivity=arrays.get("connectivity"),
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise UseError(f"{path}: not a file of fine-grained masks ({one_line(error)[:120]})") from None
    _check(masks, str(path))
    return masks


def _check(masks: FineMasks, what: str) -> None:
    if not masks.channels:
        raise UseError(f"{what}: no channel masks in it")
    for name, mask in masks.channels.items():
        if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_ or mask.ndim not in (1, 2) or not mask.size:
            description = f"{mask.dtype} {mask.shape}" if isinstance(mask, np.ndarray) else type(mask).__name__
            raise UseError(
                f"{what}: the channel mask of {name} must be booleans (layers, channels), found {description}"
            )
    if not 0 <= masks.threshold < 1:
        raise UseError(f"{what}: the data masks' threshold must be in [0, 1), found {masks.threshold:g}")
    shares = {**masks.kept, **({} if masks.kept_whole is None else {"the network": masks.kept_whole})}
    wrong = [name for name, value in shares.items() if not 0 <= value <= 1]
    if wrong:
        raise UseError(f"{what}: the kept fraction of {wrong[0]} must be in [0, 1], found {shares[wrong[0]]:g}")
    if not isinstance(masks.config, Mapping):
        raise UseError(f"{what}: its configuration is no mapping")
    if masks.connectivity is not None:
        check_mask(masks.connectivity, what=f"{what}: connectivity")
