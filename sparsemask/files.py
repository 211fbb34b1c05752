"""Atomic writing of files: a crash, a kill or a full disk never leaves a partial file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from sparsemask import locks
from sparsemask.errors import UseError

_PART = ".part"  # ends the names of what is being written


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a binary file beside `path` and rename it into place when the block ends well.

    On any error the temporary file is removed and an existing file at `path` stays unchanged.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=_PART, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            locks.try_lock_open(file)  # marks the file as in use, for remove_stale
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
        _sync_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise


def remove_stale(folder: str | os.PathLike[str]) -> None:
    """Remove temporary files below `folder` that :func:`atomic_write` left in killed processes."""
    for path in Path(folder).rglob(f".*{_PART}"):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if locks.try_lock_open(file):
                path.unlink()


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `path` atomically."""
    with atomic_write(path) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write UTF-8 `text` to `path` atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | os.PathLike[str], value: object) -> None:
    """Write `value` to `path` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a JSON object; UseError when it is missing or truncated."""
    from sparsemask import containers  # loads numpy, which most of this module's callers do not need

    value = containers.read_json(path)
    if not isinstance(value, dict):
        raise UseError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def sha256(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's content."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def distinct_names(files: Sequence[str | os.PathLike[str]], suffix: bool = False) -> list[str]:
    """Names of files for what is made of them, unique for each file.

    The stems where they differ, else the paths below the common folder (`a/0000` and `b/0000`), with suffixes where
    only these differ. A file that is listed twice has one name.

    Args:
        files: paths.
        suffix: use file names with suffixes, not stems.

    Returns:
        A name for each entry of `files`, in order.
    """
    paths = [Path(path) for path in files]

    def short(path: Path) -> str:
        return path.name if suffix else path.stem

    names = [short(path) for path in paths]
    if len(set(names)) == len(paths):
        return names
    absolute = [Path(os.path.abspath(path)) for path in paths]
    distinct = len(set(absolute))
    if len(set(names)) == distinct:
        return names
    top = os.path.commonpath({path.parent for path in absolute})
    below = [path.relative_to(top) for path in absolute]
    names = [(path.parent / short(path)).as_posix() for path in below]
    owners: dict[str, set[Path]] = {}
    for name, path in zip(names, below, strict=True):
        owners.setdefault(name, set()).add(path)
    names = [name if len(owners[name]) == 1 else path.as_posix() for name, path in zip(names, below, strict=True)]
    return names if len(set(names)) == distinct else [path.as_posix() for path in below]


def must_exist(path: str | os.PathLike[str], what: str, hint: str = "") -> Path:
    """Return `path` as a Path; UseError "WHAT not found" where it does not exist."""
    path = Path(path)
    if not path.exists():
        raise UseError(f"{what} not found: {path}" + (f" ({hint})" if hint else ""))
    return path


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def _sync_folder(folder: Path) -> None:
    # The rename itself must reach the disk; some file systems refuse to open a folder: then it is their affair.
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def shown_path(path: str | Path) -> str:
    """A path for messages: relative to the working directory where it lies below it."""
    absolute, working_directory = Path(path).absolute(), Path.cwd()
    return str(absolute.relative_to(working_directory)) if absolute.is_relative_to(working_directory) else str(path)


def output_path(path: str | os.PathLike[str], suffix: str, kind: str) -> Path:
    """Check the path of a file to be written, which a user named.

    Args:
        path: of the file.
        suffix: that it must have.
        kind: subject and verb of the error message, such as "a connectivity mask is".

    Raises:
        UseError: another suffix, or a folder that does not exist.
    """
    path = Path(path)
    if path.suffix != suffix:
        raise UseError(f"--out {path}: {kind} a {suffix} file")
    if not path.parent.is_dir():
        raise UseError(f"--out {path}: no such folder: {path.parent}")
    return path
