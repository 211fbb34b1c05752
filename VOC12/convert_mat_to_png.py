"""Convert the SBD labels from .mat to index PNG: PATH/dataset/cls/*.mat to PATH/dataset/cls_png/*.png.

    python VOC12/convert_mat_to_png.py --sbd_path benchmark_RELEASE

Decided file by file: a conversion that was stopped is completed by running it again.
"""

from __future__ import annotations

if not __package__:  # run as a file: the repository's root takes the place of this folder on the path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import os
import sys
from pathlib import Path

from sparsemask.errors import UseError, command
from sparsemask.files import must_exist
from sparsemask.VOC12.convert import convert_files, mat_to_png


def convert(sbd_path: str | os.PathLike, workers: int | None = None) -> tuple[int, int]:
    """Convert what is not converted yet; returns (files written, files that were there)."""
    root = must_exist(sbd_path, "SBD folder")
    folders = (root / "cls", root / "dataset" / "cls", root / "benchmark_RELEASE" / "dataset" / "cls")
    source = next((folder for folder in folders if folder.is_dir()), None)
    if source is None:
        raise UseError(f"{root}: no dataset/cls below it; give the folder benchmark_RELEASE of SBD")
    mats = sorted(source.glob("*.mat"))
    if not mats:
        raise UseError(f"{source}: no .mat files in it")
    target = source.parent / "cls_png"
    return convert_files(mat_to_png, [(mat, target / f"{mat.stem}.png") for mat in mats], target, workers)


@command
def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sbd_path", required=True, metavar="PATH", help="folder benchmark_RELEASE of SBD")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: all cores)")
    options = parser.parse_args(argv)
    convert(options.sbd_path, options.workers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
