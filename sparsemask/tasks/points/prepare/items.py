"""What all preparations share: items whose files are whole or absent, made by several processes, and checks."""

from __future__ import annotations

import contextlib
import os
import sys
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sparsemask import locks
from sparsemask.containers import npy_length
from sparsemask.errors import UseError, say
from sparsemask.tasks.points.clouds.ply import ply_size
from sparsemask.VOC12.bulk import remove_leftovers
from sparsemask.VOC12.workers import run_jobs


@dataclass(frozen=True)
class Item:
    """One cloud to prepare: its name, what it is made from, and the files it gives, the one that vouches last."""

    name: str
    source: Path | None
    files: tuple[Path, ...]
    grid: float  # metres
    columns: int | None = None  # values of a point, of a headerless source


def prepare(
    items: list[Item], make: Callable[[Item], str | None], folder: Path, jobs: int | None, text: str
) -> tuple[int, int]:
    """Make every item whose files are not all there and whole; finished ones are not touched.

    Args:
        items: what to make.
        make: writes an item's files, each atomically, in their order; may return a line to print.
        folder: where all of them go; one process at a time works in it.
        jobs: processes, all cores by default.
        text: what the progress bar says.

    Returns:
        items made, and items that were there.

    Raises:
        UseError: the first item that cannot be made; what is finished stays.
    """
    with locked(folder):
        left = [item for item in items if not all(map(whole, item.files))]
        remove_leftovers(*{path.parent for item in items for path in item.files if path.parent.is_dir()})
        for line in run_jobs(make, ((item,) for item in left), len(left), text, jobs, few=4):
            if line:
                say(line, sys.stderr)
        os.sync()  # for those files that were not forced to the disk one by one
    return len(left), len(items) - len(left)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Work in a folder alone; whoever comes later waits. A kill lets go of the lock."""
    lock = locks.try_acquire(folder / ".lock")
    if lock is None:
        say(f"{folder}: another process is at work here; waiting for it", sys.stderr)
        lock = locks.acquire(folder / ".lock")
    with lock:
        yield


def check(items: list[Item], inspect: Callable[[Item], list[str]], jobs: int | None, text: str) -> list[str]:
    """Open everything of every item; returns what is wrong, a line each, in order."""
    found = run_jobs(_numbered, ((number, inspect, item) for number, item in enumerate(items)), len(items), text, jobs)
    return [line for _, lines in sorted(found) for line in lines]


def _numbered(number: int, inspect: Callable[[Item], list[str]], item: Item) -> tuple[int, list[str]]:
    return number, inspect(item)


def whole(path: Path) -> bool:
    """Whether a file is there with all the bytes that its header promises (.npy, .npz, .ply)."""
    try:
        if path.suffix == ".ply":
            return path.stat().st_size >= (ply_size(path)[1] or 0)
        if path.suffix == ".npz":
            return zipfile.is_zipfile(path)  # its index stands at the end
        return path.stat().st_size == npy_length(path)
    except (OSError, UseError):
        return False
