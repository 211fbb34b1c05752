"""The `.npz` files that masks are kept in: plain arrays, no pickle, with a format version and the name of a space."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsemask.command_lines import spoken
from sparsemask.containers import read_npz
from sparsemask.errors import UseError, one_line
from sparsemask.files import write_bytes

SUFFIX = ".npz"
_LARGEST = 1 << 26  # bytes of one array; a mask file holds kilobytes


def is_fine(path: str | os.PathLike[str] | None) -> bool:
    """Whether a path names a file of this kind (by its suffix)."""
    return path is not None and Path(path).suffix == SUFFIX


def file_space(path: str | os.PathLike[str]) -> str | None:
    """The space named in an `.npz` mask file; None where it names none or is unreadable."""
    if not is_fine(path) or not Path(path).is_file():
        return None
    try:
        space = read_arrays(Path(path)).get("space")
    except (UseError, OSError):
        return None
    return None if space is None else str(space)


def checked(path: str | os.PathLike[str], kind: str) -> Path:
    """A path with the suffix of these files; UseError without it, in which `kind` says what the masks are."""
    path = Path(path)
    if path.suffix != SUFFIX:
        raise UseError(f"{path}: {kind} is a {SUFFIX} file")
    return path


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Every array of a mask file; sizes in its headers are checked before memory is allocated.

    Raises:
        UseError: a truncated file, or no such archive.
    """
    return read_npz(path, "truncated or not a mask file", _LARGEST)


def read(path: Path, kind: str, needed: Sequence[str], newest: int) -> dict[str, np.ndarray]:
    """The arrays of a mask file of a known kind.

    Args:
        path: the file.
        kind: what it should be, in words: "a file of fine-grained masks".
        needed: names of arrays that every such file has.
        newest: the highest format version that is understood.

    Raises:
        UseError: a missing or truncated file, one of another kind, or of a newer version.
    """
    if path.is_dir():
        raise UseError(f"{path}: is a folder, expected a mask file ({SUFFIX})")
    if not path.exists():
        raise UseError(f"mask not found: {path} ({spoken('prune')} writes one)")
    arrays = read_arrays(path)
    missing = [name for name in ("format", *needed) if name not in arrays]
    if missing:
        raise UseError(f"{path}: not {kind} (no {', '.join(missing)})")
    try:
        version = int(arrays["format"])
    except (ValueError, TypeError) as error:
        raise UseError(f"{path}: not {kind} ({one_line(error)[:120]})") from None
    if version > newest:
        raise UseError(f"{path}: written by a newer version (format {version}, known: {newest})")
    return arrays


def write(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays atomically."""
    data = io.BytesIO()
    np.savez_compressed(data, **arrays)
    write_bytes(path, data.getvalue())
