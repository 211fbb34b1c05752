"""Mask files of kept groups: `.npz` of plain arrays, no pickle.

Contents: format version, space, the network's recipe (name, options, variant, initialisation, classes, input shape), a
bool array for every set of groups, the names of merged pairs, the threshold, and the SHA-256 of the checkpoint that
holds the weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sparsemask.errors import UseError, one_line
from sparsemask.files import sha256
from sparsemask.masks import npz

FORMAT = 1
SPACE = "hinge"
SPACES = (SPACE, "slim")
_KEPT = "kept/"
_MOST = 1 << 24  # groups of a set
_NEEDED = ("arch", "n_class", "arch_options", "variant", "init", "input_shape")


@dataclass(frozen=True)
class GroupMask:
    """The groups of a hinged network that are kept."""

    config: Mapping[str, object]
    """The network's recipe: arch, n_class, arch_options, variant, init, input_shape, fold."""
    kept: Mapping[str, np.ndarray]
    """Set name -> bool (count,)."""
    merged: tuple[str, ...] = ()
    """Pairs that are one convolution."""
    threshold: float | None = None
    """Groups with smaller norms (or scores) were dropped; None if there is no single threshold."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Counted and measured costs of the network, such as ratios to the plain network's."""
    checkpoint: str | None = None
    """Path of the checkpoint that holds the weights."""
    sha256: str = ""
    """Of the checkpoint."""
    space: str = SPACE

    @property
    def kept_fraction(self) -> float:
        """Keep ratio over all groups, in (0, 1]."""
        return sum(int(k.sum()) for k in self.kept.values()) / max(1, sum(len(k) for k in self.kept.values()))

    def check_weights(self, path: str | os.PathLike, what: object = "mask") -> None:
        """Check that a file is the checkpoint that the mask was made from.

        Args:
            path: the checkpoint.
            what: the mask's name in errors.

        Raises:
            UseError: the file is missing or differs.
        """
        if not Path(path).is_file():
            raise UseError(f"checkpoint not found: {path}")
        if sha256(path) != self.sha256:
            raise UseError(
                f"{what}: made from another checkpoint than {path}; masks and weights belong together: prune that one"
            )

    def recipe(self) -> dict:
        """Return the mask as plain values, for checkpoints and safetensors metadata."""
        return {
            "config": dict(self.config),
            "kept": {name: [len(k), *np.flatnonzero(k).tolist()] for name, k in self.kept.items()},
            "merged": list(self.merged),
            "threshold": self.threshold,
            "figures": dict(self.figures),
        }

    @classmethod
    def from_recipe(cls, recipe: Mapping, what: object) -> GroupMask:
        """Build the mask from the values of :meth:`recipe`.

        Raises:
            UseError: the values describe no mask; the message names `what`.
        """
        try:
            kept = {}
            for name, (count, *indices) in recipe["kept"].items():
                if not 0 < int(count) <= _MOST:
                    raise ValueError(f"{name} of {count} groups")
                kept[name] = np.zeros(int(count), dtype=bool)
                kept[name][indices] = True
            mask = cls(dict(recipe["config"]), kept, tuple(recipe["merged"]), recipe["threshold"], recipe["figures"])
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UseError(f"{what}: says nothing readable of a network of groups ({one_line(error)[:100]})") from None
        _check(mask, what)
        return mask


def save_mask(path: str | os.PathLike, mask: GroupMask) -> None:
    """Check a mask and write it to `path` (.npz), atomically.

    Raises:
        UseError: another suffix, or an invalid mask.
    """
    path = npz.checked(path, "a mask of groups of weights")
    _check(mask, path)
    arrays: dict[str, np.ndarray] = {
        "format": np.array(FORMAT),
        "space": np.array(mask.space),
        "sha256": np.array(mask.sha256),
        "config": np.array(json.dumps(dict(mask.config), sort_keys=True)),
        "merged": np.array(json.dumps(list(mask.merged))),
        "figures": np.array(json.dumps(dict(mask.figures))),
        "threshold": np.array(np.nan if mask.threshold is None else float(mask.threshold)),
        "checkpoint": np.array(mask.checkpoint or ""),
        **{f"{_KEPT}{name}": np.asarray(kept) for name, kept in mask.kept.items()},
    }
    npz.write(path, arrays)


def load_mask(path: str | os.PathLike) -> GroupMask:
    """Read a mask file.

    Raises:
        UseError: the file is missing, damaged, of another kind or of a newer version.
    """
    path = npz.checked(path, "a mask of groups of weights")
    needed = ("space", "config", "merged", "threshold", "sha256")
    arrays = npz.read(path, "a mask of groups of weights", needed, FORMAT)
    try:
        threshold = float(arrays["threshold"])
        mask = GroupMask(
            config=json.loads(str(arrays["config"])),
            kept={k.removeprefix(_KEPT): v for k, v in arrays.items() if k.startswith(_KEPT)},
            merged=tuple(json.loads(str(arrays["merged"]))),
            threshold=None if np.isnan(threshold) else threshold,
            figures=json.loads(str(arrays.get("figures", "{}"))),
            checkpoint=str(arrays.get("checkpoint", "")) or None,
            sha256=str(arrays["sha256"]),
            space=str(arrays["space"]),
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise UseError(f"{path}: not a mask of groups of weights ({one_line(error)[:120]})") from None
    _check(mask, path)
    return mask


def _check(mask: GroupMask, what: object) -> None:
    if mask.space not in SPACES:
        raise UseError(f"{what}: a mask of space '{mask.space}', not of '{SPACE}'")
    if not isinstance(mask.config, Mapping) or (missing := [n for n in _NEEDED if n not in mask.config]):
        lacking = f" (no {', '.join(missing)})" if isinstance(mask.config, Mapping) else ""
        raise UseError(f"{what}: does not say of which network it is{lacking}")
    if not mask.kept:
        raise UseError(f"{what}: no groups in it")
    for name, kept in mask.kept.items():
        if not isinstance(kept, np.ndarray) or kept.dtype != np.bool_ or kept.ndim != 1 or not kept.any():
            raise UseError(f"{what}: the groups of {name} must be booleans (count,), at least one of them true")
    if not all(isinstance(name, str) for name in mask.merged):
        raise UseError(f"{what}: the merged pairs must be names")
