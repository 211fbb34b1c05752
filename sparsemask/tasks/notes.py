"""Notes of a task on its data before training, on standard error, once."""

from __future__ import annotations

import os
import sys

from sparsemask.engine import distributed
from sparsemask.errors import say
from sparsemask.VOC12.images import picture_notes


def warn(text: str) -> None:
    """One line on standard error, from the first process only."""
    if distributed.rank() == 0:
        say(text, sys.stderr)


def say_how_read(split: str, *paths: str | os.PathLike) -> None:
    """Print what reading changes in the first image(s) of a split: orientation, scaling of 16 bits or floats."""
    for path in paths:
        for text in picture_notes(path):
            warn(f"note: {split} pictures are read so: {path}: {text}")
