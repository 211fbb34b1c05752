"""Writing many small files: each whole or absent after a kill, without waiting for the disk at every one."""

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
    """Remove what killed runs were writing: temporary names of ours, and nothing else."""
    for folder in folders:
        for path in folder.glob(".*.part"):
            path.unlink(missing_ok=True)
