"""Atomic writing of many small files, without forcing each to the disk."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def write_bulk(path: str | os.PathLike, data: bytes) -> None:
    """Write `data` beside `path` and rename it into place.

    Unlike `sparsemask.files.write_bytes` it does not force the file to the disk, which would take most of the
    time of ten thousand files: whoever needs that calls `os.sync` once, after the last.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise


def remove_leftovers(*folders: Path) -> None:
    """Remove temporary files that killed runs left; other files stay."""
    for folder in folders:
        for path in folder.glob(".*.part"):
            path.unlink(missing_ok=True)
