"""Folders of generated data: drawn once into the cache, or completed where they are half made."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sparsemask.datasets import cache
from sparsemask.errors import UseError
from sparsemask.files import read_json, write_json

STAMP = "STAMP.json"  # the settings, written last: whoever finds it finds everything
_STARTED = "STARTED.json"  # the stamp to be, while the folder is half made


def once(name: str, task: str, make: Callable[[Path], None]) -> Path:
    """The set `name` in the cache folder, drawn atomically unless it exists."""
    folder = cache() / name
    if folder.is_dir():
        return folder
    print(f"drawing pictures for --task {task} into {folder} ...", file=sys.stderr, flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder.parent))
    try:
        make(part / name)
        os.rename(part / name, folder)
    except OSError:
        if not folder.is_dir():  # another process was quicker
            raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


@dataclass(frozen=True)
class StampedFolder:
    """A folder of data that are a function of settings.

    Attributes:
        path: absent, empty, or of a former call.
        title: of the data in messages.
        settings: by name.
        limits: the least and the largest value of settings.

    Raises:
        UseError: a setting is beyond its limits.
    """

    path: Path
    title: str
    settings: dict
    limits: Mapping[str, tuple[float, float]]

    def __post_init__(self) -> None:
        for name, (low, high) in self.limits.items():
            if not low <= self.settings[name] <= high:
                raise UseError(f"{self.title}: {name} {self.settings[name]} is not between {low} and {high}")

    @property
    def stamped(self) -> bool:
        """Whether data of these settings were finished here; files may have gone since."""
        return self._read(STAMP) == self.settings

    def begin(self, remove: Callable[[], None]) -> None:
        """Mark in the folder that data are being made.

        Args:
            remove: called where data of other settings are here.

        Raises:
            UseError: files of something else are here.
        """
        former = self._read(STAMP) or self._read(_STARTED)
        if former is None and any(self.path.glob("[!.]*")):
            raise UseError(f"{self.path}: the folder is not empty and holds no {self.title}; give another")
        (self.path / STAMP).unlink(missing_ok=True)
        if former is not None and former != self.settings:
            remove()
        write_json(self.path / _STARTED, self.settings)

    def finish(self) -> None:
        """Mark that the data are whole."""
        write_json(self.path / STAMP, self.settings)
        (self.path / _STARTED).unlink(missing_ok=True)

    def _read(self, name: str) -> dict | None:
        return read_json(self.path / name) if (self.path / name).is_file() else None
