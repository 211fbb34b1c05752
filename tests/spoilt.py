"""A folder with data and a finished search, what tests spoil in it, and how they look at it afterwards."""

from __future__ import annotations

import os
from pathlib import Path

from tiny import SMALL, data_flags

DATA = data_flags(Path("data"))
SEARCH = ["--search", *DATA, *SMALL, "--max_iter", "2", "--name", "new"]
TRAIN = [*DATA, *SMALL, "--max_iter", "2", "--name", "new"]


def listing(folder: Path) -> set[str]:
    """Every file below a folder but the data, which a case may have spoiled on purpose."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file() and "data" not in p.parts}


class Code:
    def __reduce__(self):
        return os.system, ("touch executed",)


def truncate(path: Path, keep: float = 0.5) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
