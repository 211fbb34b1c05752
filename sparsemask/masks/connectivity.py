"""Connectivity mask files: which feature feeds which decoder stage.

A mask of L features is a boolean array (L, L, 2) in a `.npy` file (the public format): row i is decoder stage
i, 0 the deepest; `[i, j, 0]` says that end point E_j feeds stage i, `[i, j, 1]` that u_j does, where u_0 is
the globally averaged E_0 and u_j = D_{j-1} the output of stage j-1. Nothing stands at j > i; the last row is
the output stage. Beside it a json file of the same stem may say where the mask comes from.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from sparsemask.command_lines import spoken
from sparsemask.containers import read_npy, read_npz
from sparsemask.errors import UseError
from sparsemask.files import atomic_write, read_json, write_json

DOWN, UP = 0, 1
_LARGEST = 1 << 26  # bytes of one array of a mask file
_NOTED = {"run", "checkpoint", "connections", "mask_path", "carried_from"}  # what the notes beside masks say


def save_mask(path: str | os.PathLike[str], mask: np.ndarray, note: dict[str, Any] | None = None) -> None:
    """Check a mask and write it, with a note in the json file beside it; each file atomically.

    The note is written first, so that a crash in between leaves no mask without its note.

    Args:
        path: the `.npy` file.
        mask: bool (L, L, 2).
        note: plain values by name, such as where the mask comes from; None: an older note is removed.

    Raises:
        UseError: see :func:`check_mask`.
    """
    path = _npy(path)
    mask = check_mask(mask, what=str(path))
    if note is not None:
        write_json(path.with_suffix(".json"), note)
    else:
        _forget_note(path.with_suffix(".json"))
    with atomic_write(path) as file:
        np.lib.format.write_array(file, mask, allow_pickle=False)


def load_mask(path: str | os.PathLike[str]) -> np.ndarray:
    """Read a connectivity mask.

    Args:
        path: the `.npy` file.

    Returns:
        bool (L, L, 2), checked by :func:`check_mask`.

    Raises:
        UseError: the file is missing, truncated, of another kind, or holds no usable mask.
    """
    if Path(path).suffix == ".npz" and Path(path).is_file():
        read_npz(path, "truncated or not a mask file", _LARGEST)  # truncated ones are reported as such
    path = _npy(path)
    if path.is_dir():
        raise UseError(f"{path}: is a folder, expected a mask file (.npy)")
    if not path.exists():
        raise UseError(f"mask not found: {path} ({spoken('prune')} writes one)")
    return check_mask(read_npy(path, "truncated or not a mask file"), what=str(path))


def mask_note(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The note in the json file beside a mask; empty where there is none."""
    note = Path(path).with_suffix(".json")
    return read_json(note) if note.exists() else {}


def check_mask(mask: np.ndarray, n_features: int | None = None, what: str = "mask") -> np.ndarray:
    """Check that a connectivity mask describes a usable network, and return a copy of it.

    Args:
        mask: bool (L, L, 2), L at least 1, nothing true at j > i; the output stage has inputs, and no stage without
            inputs is used.
        n_features: L that is expected; None: any.
        what: how error messages begin.

    Returns:
        A copy of the mask.

    Raises:
        UseError: the mask violates one of these conditions.
    """
    if not isinstance(mask, np.ndarray) or mask.dtype != np.bool_:
        description = mask.dtype if isinstance(mask, np.ndarray) else type(mask).__name__
        raise UseError(f"{what}: a mask holds booleans, found {description}")
    if mask.ndim != 3 or mask.shape[0] != mask.shape[1] or mask.shape[2] != 2 or not mask.shape[0]:
        raise UseError(f"{what}: a mask has shape (L, L, 2), found {mask.shape}")
    length = len(mask)
    if n_features is not None and length != n_features:
        raise UseError(
            f"{what}: the mask is for {length} features, this backbone has {n_features}; "
            "take a mask searched with this backbone"
        )
    if mask[~np.tri(length, dtype=bool)].any():
        raise UseError(f"{what}: not a connectivity mask, a stage takes a feature of a later one (true at j > i)")
    problem = why_unusable(mask)
    if problem:
        raise UseError(f"{what}: unusable, {problem}")
    return np.array(mask)


def why_unusable(mask: np.ndarray) -> str:
    """The reason why no network can be built from a well-formed mask; empty where one can."""
    inputs: np.ndarray = np.logical_or.reduce(mask, axis=(1, 2))
    last = len(mask) - 1
    if not inputs[last]:
        return f"the output stage {last} has no inputs (a lower threshold would keep some)"
    for stage in range(last):
        users = np.flatnonzero(mask[:, stage + 1, UP])
        if not inputs[stage] and len(users):
            return f"stage {stage} has no inputs but feeds stage {users[0]}"
    return ""


def count_connections(mask: np.ndarray) -> int:
    """Number of connections that a mask (L, L, 2) keeps."""
    return int(np.count_nonzero(mask))


def _forget_note(note: Path) -> None:
    """Remove an older mask's note; other json files stay."""
    if note.exists():
        with contextlib.suppress(UseError):
            if _NOTED & read_json(note).keys():
                note.unlink()


def _npy(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    if path.suffix != ".npy":
        raise UseError(f"{path}: a connectivity mask is a .npy file")
    return path
