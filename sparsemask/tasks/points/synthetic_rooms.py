"""Folder of the generated rooms, made on first use."""

from __future__ import annotations

import sys
from pathlib import Path

from sparsemask import datasets


def sample_folder() -> Path:
    """The embedded rooms, prepared (the folder S3DIS_ply)."""
    from sparsemask.synthetic.rooms import make_rooms

    folder = datasets.cache() / "rooms"
    if not (folder / "STAMP.json").exists():
        print(f"making the sample rooms in {folder} ...", file=sys.stderr, flush=True)
    make_rooms(folder)
    return folder
