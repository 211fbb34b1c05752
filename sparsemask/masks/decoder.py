"""Mask files of decoders: which feature feeds which stage, and what a stage of the wider space computes.

A published mask of L features is a boolean array (L, L, 2) in a `.npy` file (the public format): row i is decoder stage
i, 0 the deepest; `[i, j, 0]` says that end point E_j feeds stage i, `[i, j, 1]` that u_j does, where u_0 is
the globally averaged E_0 and u_j = D_{j-1} the output of stage j-1. Nothing stands at j > i; the last row is
the output stage. Beside it a json file of the same stem may say where the mask comes from.

It chooses connections alone: every stage has 1x1 convolutions of one width. A :class:`DecoderMask` of the wider space
chooses operations, widths and the output's stage too. Its file is `.npy` as well, an array of one record a stage, so
that the header of the file says which of the two it is.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsemask.command_lines import spoken
from sparsemask.containers import read_npy, read_npz
from sparsemask.errors import UseError
from sparsemask.files import atomic_write, read_json, write_json

if TYPE_CHECKING:  # files are read without it
    from torch import Tensor

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


POINTWISE, SEPARABLE, FULL = 0, 1, 2
OPERATIONS = ("1x1", "separable 3x3", "3x3")
"""Operations of a stage, by their numbers in masks: what follows the sum of its 1x1 convolutions, at its own size."""
MULTIPLE = 8
_WIDEST, _MOST_FEATURES = 1024, 1000


@dataclass(frozen=True, eq=False)
class DecoderMask:
    """A decoder of the wider space. Make one with :func:`decoder_mask`, which checks and cleans.

    Attributes:
        connections: bool (L, L, 2), as of a published mask; only stages that the output depends on have inputs.
        operations: uint8 (L,), POINTWISE, SEPARABLE or FULL; 0 where a stage has no inputs.
        widths: int32 (L,), channels of each stage, multiples of 8; 0 where a stage has no inputs.
        context: whether the deepest stage with inputs is followed by a context block.
    """

    connections: np.ndarray
    operations: np.ndarray
    widths: np.ndarray
    context: bool = False

    def __len__(self) -> int:
        return len(self.connections)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DecoderMask) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def key(self) -> tuple[int, bytes]:
        """Equal for equal decoders, and hashable."""
        return len(self), self.packed().numpy().tobytes()

    @property
    def stages(self) -> list[int]:
        """Stages with inputs, deepest first."""
        return [int(i) for i in np.flatnonzero(self.connections.any((1, 2)))]

    @property
    def output(self) -> int:
        """The stage that the head reads: the shallowest one with inputs."""
        return self.stages[-1]

    @property
    def deepest(self) -> int:
        """The deepest end point that is read; 0 also where the global average is."""
        return deepest_end_point(self.connections)

    def packed(self) -> Tensor:
        """One int32 tensor (L, 2L + 3), for checkpoints: connections, operation, width, context."""
        rows = self.connections.reshape(len(self), -1).astype(np.int32)
        context = np.full(len(self), self.context)
        import torch

        return torch.from_numpy(np.column_stack((rows, self.operations, self.widths, context)).astype(np.int32))

    @classmethod
    def unpack(cls, packed: Tensor) -> DecoderMask:
        """The decoder of :meth:`packed`; UseError where the tensor is none."""
        rows = packed.cpu().numpy()
        length = len(rows) if rows.ndim == 2 else 0
        if not length or rows.shape[1] != 2 * length + 3:
            raise UseError(f"not a decoder mask: a tensor of shape {tuple(packed.shape)}")
        connections = rows[:, : 2 * length].reshape(length, length, 2).astype(bool)
        return decoder_mask(connections, rows[:, -3], rows[:, -2], bool(rows[0, -1]))


def decoder_mask(
    connections: np.ndarray,
    operations: Sequence[int] | np.ndarray,
    widths: Sequence[int] | np.ndarray,
    context: bool = False,
    what: str = "mask",
) -> DecoderMask:
    """Check and clean a decoder: stages that the output does not depend on lose their inputs.

    Args:
        connections: bool (L, L, 2); the output is the shallowest stage with inputs; stages after it are empty.
        operations: L numbers of :data:`OPERATIONS`; those of stages without inputs are not looked at.
        widths: L channel numbers, multiples of 8 up to 1024, likewise.
        context: whether a context block follows the deepest stage with inputs.
        what: how error messages begin.

    Raises:
        UseError: no stage has inputs, a used stage has none, an unknown operation, a width that is not allowed.
    """
    connections = np.asarray(connections)
    shaped = connections.dtype == np.bool_ and connections.ndim == 3 and connections.shape[1:] == (len(connections), 2)
    if not shaped or not 0 < len(connections) <= _MOST_FEATURES or not connections.any():
        raise UseError(f"{what}: a decoder has connections (L, L, 2) that are booleans, one true at least")
    output = int(np.flatnonzero(connections.any((1, 2)))[-1])
    # The part of the features up to the output is a published mask.
    check_mask(connections[: output + 1, : output + 1], what=what)
    if connections[: output + 1, output + 1 :].any():
        raise UseError(f"{what}: not a decoder, a stage takes a feature of a later one (true at j > i)")
    cleaned = np.array(connections)
    for stage in range(output - 1, -1, -1):
        if not cleaned[:, stage + 1, UP].any():
            cleaned[stage] = False
    live: np.ndarray = np.logical_or.reduce(cleaned, axis=(1, 2))
    kinds, channels = np.array(operations), np.array(widths)
    if kinds.shape != live.shape or channels.shape != live.shape:
        raise UseError(f"{what}: a decoder of {len(live)} features has as many operations and widths")
    if not np.isin(kinds[live], range(len(OPERATIONS))).all():
        raise UseError(f"{what}: unknown operation; known: 0 to {len(OPERATIONS) - 1} ({', '.join(OPERATIONS)})")
    if (channels[live] % MULTIPLE).any() or (channels[live] < MULTIPLE).any() or (channels[live] > _WIDEST).any():
        raise UseError(f"{what}: widths of stages are multiples of {MULTIPLE} up to {_WIDEST}")
    return DecoderMask(
        cleaned, np.where(live, kinds, 0).astype(np.uint8), np.where(live, channels, 0).astype(np.int32), bool(context)
    )


def check_decoder(mask: np.ndarray | DecoderMask, n_features: int, what: str = "mask") -> np.ndarray | DecoderMask:
    """Check a mask of either space; one of the published space is copied.

    Args:
        mask: bool (L, L, 2), or a decoder of the wider space, which was checked when it was made.
        n_features: L that is expected.
        what: how error messages begin.

    Raises:
        UseError: a mask of another number of features, or an unusable one.
    """
    if not isinstance(mask, DecoderMask):
        return check_mask(mask, n_features, what)
    if len(mask) != n_features:
        raise UseError(
            f"{what}: the mask is for {len(mask)} features, this backbone has {n_features}; "
            "take a mask searched with this backbone"
        )
    return mask


def connections_of(mask: np.ndarray | DecoderMask) -> np.ndarray:
    """The connections, bool (L, L, 2), of a mask of either space."""
    return mask.connections if isinstance(mask, DecoderMask) else mask


def only_published(mask: np.ndarray | DecoderMask, what: str, who: str) -> np.ndarray:
    """Return the mask where it is of the published space.

    Args:
        mask: of either space.
        what: how the error message begins.
        who: what cannot take a decoder of the wider space, in words.

    Raises:
        UseError: a decoder of the wider space.
    """
    if isinstance(mask, DecoderMask):
        raise UseError(
            f"{what}: a decoder of the wider space; {who} take masks of connections alone (unet, dense, ...)"
        )
    return mask


def as_decoder(mask: np.ndarray | DecoderMask, depth: int) -> DecoderMask:
    """Describe a published mask as a decoder of the wider space.

    Args:
        mask: bool (L, L, 2), or a decoder, which is returned as it is.
        depth: channels of every stage.
    """
    if isinstance(mask, DecoderMask):
        return mask
    return decoder_mask(mask, [POINTWISE] * len(mask), [depth] * len(mask))


def deepest_end_point(connections: np.ndarray) -> int:
    """The deepest end point that any stage reads, 0 where the global average is read, of cleaned connections."""
    if connections[:, 0].any():
        return 0
    return int(np.flatnonzero(connections[:, :, DOWN].any(0))[0])


def _record(length: int) -> np.dtype:
    """The record of a stage in a file."""
    return np.dtype([("takes", "?", (length, 2)), ("operation", "u1"), ("width", "<i4"), ("context", "?")])


def save_decoder(
    path: str | os.PathLike[str], mask: np.ndarray | DecoderMask, note: dict[str, Any] | None = None
) -> None:
    """Write a mask of either space with a note beside it, as :func:`sparsemask.masks.save_mask` does."""
    if not isinstance(mask, DecoderMask):
        return save_mask(path, mask, note)
    path = Path(path)
    if path.suffix != ".npy":
        raise UseError(f"{path}: a connectivity mask is a .npy file")
    rows = np.zeros(len(mask), _record(len(mask)))
    rows["takes"], rows["operation"], rows["width"] = mask.connections, mask.operations, mask.widths
    rows["context"] = mask.context
    write_json(path.with_suffix(".json"), note or {"connections": int(mask.connections.sum())})
    with atomic_write(path) as file:
        np.lib.format.write_array(file, rows, allow_pickle=False)
    return None


def load_decoder(path: str | os.PathLike[str]) -> np.ndarray | DecoderMask:
    """Read a mask of either space.

    Args:
        path: the `.npy` file.

    Returns:
        bool (L, L, 2) of the published space, or a decoder of the wider one, checked.

    Raises:
        UseError: the file is missing, torn, of another kind, or holds no usable mask.
    """
    path = Path(path)
    if path.suffix == ".npy" and path.is_file():
        rows = read_npy(path, "truncated or not a mask file")
        if rows.dtype.names:
            if rows.ndim != 1 or rows.dtype != _record(len(rows)):
                raise UseError(f"{path}: not a mask of the wider space: records of another kind")
            return decoder_mask(
                rows["takes"], rows["operation"], rows["width"], bool(rows["context"].any()), what=str(path)
            )
    return load_mask(path)
