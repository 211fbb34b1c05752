"""Check a data set: open every picture and label and list what is wrong.

    python VOC12/check.py                                     what VOC12/prepare.py made
    python VOC12/check.py --voc_root VOCdevkit --list val     a devkit folder
    python VOC12/check.py --im_path IMG --gt_path GT --list names.txt --n_class 5

Exit status 0 if all is well, 2 if there are faults.
"""

from __future__ import annotations

if not __package__:  # run as a file: the repository's root takes the place of this folder on the path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsemask.errors import UseError, command
from sparsemask.options import Parser
from VOC12.images import read_picture
from VOC12.lists import devkit_root, find_devkit_pairs, find_pairs
from VOC12.palette import ColourLabelError, out_of_range, read_label
from VOC12.workers import run_jobs

KINDS = {
    "missing": "file missing",
    "unreadable": "file truncated or no picture",
    "colours": "colours where class indices are expected",
    "sizes": "label and picture of different sizes",
    "range": "label beyond the classes",
}


@dataclass(frozen=True, order=True)
class Fault:
    """Something wrong with one file."""

    path: str
    kind: str  # a key of KINDS
    text: str


def check_pairs(
    pairs: Sequence[tuple[str | os.PathLike, str | os.PathLike]],
    n_class: int = 21,
    workers: int | None = None,
) -> list[Fault]:
    """Decode every pair of a picture and its label; returns what is wrong, sorted by file."""
    jobs = list(dict.fromkeys((str(picture), str(label), n_class) for picture, label in pairs))
    return sorted({fault for faults in run_jobs(check_pair, jobs, len(jobs), "checking", workers) for fault in faults})


def check_pair(picture_path: str, label_path: str, n_class: int) -> list[Fault]:
    """Faults of one pair."""
    faults: list[Fault] = []
    found = []
    for path, read in ((picture_path, read_picture), (label_path, read_label)):
        try:
            found.append(read(path))
        except UseError as error:
            kind = "unreadable" if Path(path).is_file() else "missing"
            if isinstance(error, ColourLabelError):
                kind = "colours"
            faults.append(Fault(path, kind, str(error).removeprefix(f"{path}: ")))
            found.append(None)
    picture, label = found
    if label is not None and (wrong := out_of_range(label, n_class)):
        faults.append(Fault(label_path, "range", f"label {', '.join(map(str, wrong))} beyond {n_class} classes"))
    if picture is not None and label is not None and picture.shape[:2] != label.shape:
        (height, width), (tall, wide) = picture.shape[:2], label.shape
        faults.append(Fault(label_path, "sizes", f"{wide}x{tall} pixels, its picture {width}x{height}"))
    return faults


@command
def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = Parser("check", prog="VOC12/check.py", description=__doc__)
    parser.add_argument("--im_path", default="VOC12/data/img", metavar="FOLDER", help="pictures (%(default)s)")
    parser.add_argument("--gt_path", default="VOC12/data/gt", metavar="FOLDER", help="labels (%(default)s)")
    parser.add_argument(
        "--list",
        nargs="+",
        metavar="LIST",
        help="list files, or names of the devkit's lists (default: train_aug and val, beside the labels)",
    )
    parser.add_argument("--n_class", type=int, default=21, metavar="N", help="number of classes (%(default)s)")
    parser.add_argument("--voc_root", metavar="FOLDER", help="devkit folder, in place of --im_path and --gt_path")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: all cores)")
    options = parser.parse_args(argv)

    pairs = []
    if options.voc_root:
        lists = devkit_root(options.voc_root) / "ImageSets" / "Segmentation"
        train = "train_aug" if (lists / "train_aug.txt").is_file() else "train"
        for name in options.list or (train, "val"):
            pairs += find_devkit_pairs(options.voc_root, name)
    else:
        beside = Path(options.gt_path).parent
        for path in options.list or (beside / "train_aug.txt", beside / "val.txt"):
            pairs += find_pairs(options.im_path, options.gt_path, path)
    faults = check_pairs(pairs, options.n_class, options.workers)
    for fault in faults:
        print(f"{fault.path}: {fault.text}")
    counts = Counter(fault.kind for fault in faults)
    summary = "; ".join(f"{counts[kind]} {text}" for kind, text in KINDS.items() if counts[kind])
    print(f"{len(set(pairs))} pairs checked: {summary or 'no faults'}")
    return 2 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
