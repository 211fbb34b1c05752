"""Convert VOC labels, in colours or with a palette, to index PNG: PATH/NAME.png to NEW_PATH/NAME.png.

    python VOC12/convert_labels.py VOC2012/SegmentationClass trainval.txt VOC2012/SegmentationIndex

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
from sparsemask.VOC12.convert import convert_files, png_to_index
from sparsemask.VOC12.lists import read_names


def convert(
    path: str | os.PathLike, list_path: str | os.PathLike, new_path: str | os.PathLike, workers: int | None = None
) -> tuple[int, int]:
    """Convert the listed labels that are not converted yet.

    Args:
        path: folder of the labels, PNG in colours or with a palette.
        list_path: file of names.
        new_path: folder of the index PNG.
        workers: processes; None: all cores.

    Returns:
        (files written, files that existed).

    Raises:
        UseError: labels are absent or unreadable, or both folders are the same.
    """
    source, target = must_exist(path, "label folder"), Path(new_path)
    if target.resolve() == source.resolve():
        raise UseError(f"{target}: the new folder is the old one; give another, the originals stay as they are")
    names = dict.fromkeys(name.removesuffix(".png") for name in read_names(list_path))
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise UseError(f"{list_path}: '{name}' leads out of the folder; give names below {source}")
    absent = [name for name in names if not (source / f"{name}.png").is_file()]
    if absent:
        raise UseError(f"{list_path}: {len(absent)} of {len(names)} labels absent, first {source / absent[0]}.png")
    files = [(source / f"{name}.png", target / f"{name}.png") for name in names]
    return convert_files(png_to_index, files, target, workers)


@command
def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", metavar="PATH", help="folder of the labels")
    parser.add_argument("list", metavar="LIST", help="file with one name a line")
    parser.add_argument("new_path", metavar="NEW_PATH", help="where the index PNG go")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: all cores)")
    options = parser.parse_args(argv)
    convert(options.path, options.list, options.new_path, options.workers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
