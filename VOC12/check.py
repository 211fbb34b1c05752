"""Check a data set: open every picture and label and list what is wrong.

    python VOC12/check.py                                     what VOC12/prepare.py made
    python VOC12/check.py --voc_root VOCdevkit --list val     a devkit folder
    python VOC12/check.py --im_path IMG --gt_path GT --list train.txt val.txt --n_class 5
    python VOC12/check.py --list pairs.txt --n_class 5        lines of "picture label", relative to the list's folder

Of each kind of fault the first five are listed (--all: every one) and all are counted. Notes on standard error name
the classes that never occur, and count the pictures that are turned upright by EXIF or scaled to 8 bits. Exit status 0
if all is well, 2 if there are faults.
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

import numpy as np

from sparsemask.command_lines import spoken
from sparsemask.errors import UseError, command
from sparsemask.options import Parser, byte
from sparsemask.VOC12.images import read_with_notes, size_words
from sparsemask.VOC12.label_map import LabelMap, class_numbers
from sparsemask.VOC12.lists import ABSENT, devkit_root, find_devkit_pairs, find_pairs, lists_pairs, load_class_names
from sparsemask.VOC12.palette import (
    IGNORE,
    ColourLabelError,
    LabelRangeError,
    beyond_classes,
    read_label,
)
from sparsemask.VOC12.survey import Survey
from sparsemask.VOC12.workers import run_jobs

KINDS = {
    "missing": "file missing",
    "unreadable": "file truncated or no picture",
    "colours": "colours where class indices are expected",
    "sizes": "label and picture of different sizes",
    "range": "label beyond the classes",
}
SHOWN = 5  # faults of a kind that are listed


@dataclass(frozen=True, order=True)
class Fault:
    """Something wrong with one file."""

    path: str
    kind: str  # a key of KINDS
    text: str


@dataclass
class Checked:
    """Result of a check: faults sorted by file, values of all labels, counts of each note."""

    faults: list[Fault]
    labels: Survey
    notes: Counter


def check_all(
    pairs: Sequence[tuple[str | os.PathLike, str | os.PathLike]],
    n_class: int = 21,
    workers: int | None = None,
    ignore_index: int = IGNORE,
    label_map: LabelMap | None = None,
) -> Checked:
    """Decode every pair of an image and its label.

    Args:
        pairs: (image, label) files; repeated ones are opened once.
        n_class: number of classes.
        workers: processes, all cores by default.
        ignore_index: the number in labels that marks pixels to ignore.
        label_map: classes of the numbers in labels; None: these are the classes.
    """
    files = list(dict.fromkeys((str(image), str(label)) for image, label in pairs))
    jobs = [(*pair, n_class, ignore_index, label_map) for pair in files]
    faults, result = set(), Checked([], Survey(len(jobs)), Counter())
    for pair_faults, values, notes in run_jobs(_look, jobs, len(jobs), "checking", workers):
        faults |= set(pair_faults)
        result.labels.looked += 1
        result.labels.seen[values] = True
        result.notes.update(notes)
    result.faults = sorted(faults)
    return result


def _look(
    picture_path: str, label_path: str, n_class: int, ignore_index: int, label_map: LabelMap | None
) -> tuple[list[Fault], list, list[str]]:
    """Faults of one pair, the values of its label (255: ignored), and notes on how the image is read."""
    faults: list[Fault] = []

    def read_indices(path: str) -> np.ndarray:
        return class_numbers(read_label(path), n_class, ignore_index, label_map, path)

    decoded = []
    for path, reader in ((picture_path, read_with_notes), (label_path, read_indices)):
        try:
            decoded.append(reader(path))
        except UseError as error:
            kind = "unreadable" if Path(path).is_file() else "missing"
            if isinstance(error, (ColourLabelError, LabelRangeError)):
                kind = "colours" if isinstance(error, ColourLabelError) else "range"
            advice = f"; {ABSENT}" if kind == "missing" else ""
            faults.append(Fault(path, kind, str(error).removeprefix(f"{path}: ") + advice))
            decoded.append(None)
    (image, notes), label = decoded[0] or (None, []), decoded[1]
    if label is not None and (wrong := beyond_classes(label, n_class, ignore_index)):
        faults.append(Fault(label_path, "range", wrong))
    if image is not None and label is not None and image.shape[:2] != label.shape:
        faults.append(Fault(label_path, "sizes", size_words(label.shape, picture_path, image.shape[:2])))
    return faults, [] if label is None else np.unique(label).tolist(), notes


def report(checked: Checked, names: Sequence[str], count: int, ignore_index: int, list_all: bool) -> int:
    """Print the result of a check.

    Args:
        checked: the result.
        names: of the classes.
        count: number of pairs.
        ignore_index: the number in labels that marks pixels to ignore.
        list_all: print every fault, not only the first of each kind.

    Returns:
        The exit status: 0, or 2 where there are faults.
    """
    counts = Counter(fault.kind for fault in checked.faults)
    listed: Counter = Counter()
    for fault in checked.faults:
        listed[fault.kind] += 1
        if list_all or listed[fault.kind] <= SHOWN:
            print(f"{fault.path}: {fault.text}")
    for kind, text in KINDS.items():
        if not list_all and counts[kind] > SHOWN:
            print(f"... and {counts[kind] - SHOWN} more: {text} (--all lists them)")
    labels = checked.labels
    nothing = labels.unlabelled(ignored=ignore_index) if labels.seen.any() else None
    summary = "; ".join(f"{counts[kind]} {text}" for kind, text in KINDS.items() if counts[kind])
    print(f"{count} pairs checked: {'; '.join(filter(None, (summary, nothing))) or 'no faults'}")
    notes = [f"{number} picture{'s' * (number > 1)} {text}" for text, number in sorted(checked.notes.items())]
    if labels.classes:
        notes += filter(None, (labels.single(names), labels.masks(), labels.absent(names)))
    for text in notes:
        print(f"note: {text}", file=sys.stderr)
    return 2 if checked.faults or nothing else 0


@command
def main(argv: list[str] | None = None) -> int:
    """Command line; see the module's docstring."""
    parser = Parser("check", prog="VOC12/check.py", description=__doc__)
    parser.add_argument("--im_path", metavar="FOLDER", help="pictures (VOC12/data/img; of pairs: the list's folder)")
    parser.add_argument("--gt_path", metavar="FOLDER", help="labels (VOC12/data/gt; of pairs: the list's folder)")
    parser.add_argument(
        "--list",
        nargs="+",
        metavar="LIST",
        help="list files, or names of the devkit's lists (default: train_aug and val, beside the labels)",
    )
    parser.add_argument("--n_class", type=int, default=21, metavar="N", help="number of classes (%(default)s)")
    parser.add_argument(
        "--ignore_index",
        type=byte,
        default=IGNORE,
        metavar="N",
        help="number of pixels that do not count (%(default)s)",
    )
    parser.add_argument("--label_map", metavar="FILE", help="classes of the numbers in labels, as training takes it")
    parser.add_argument("--class_names", metavar="FILE", help="one class name a line")
    parser.add_argument("--all", action="store_true", help=f"list every fault, not only the first {SHOWN} of each kind")
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
        listed = options.list and all(map(lists_pairs, options.list))
        im_path, gt_path = options.im_path, options.gt_path
        if not listed:
            im_path, gt_path = im_path or "VOC12/data/img", gt_path or "VOC12/data/gt"
        beside = Path(gt_path).parent if gt_path else Path()
        if options.list is None and not beside.is_dir():
            from sparsemask.datasets import ARCHIVES

            prepare = spoken("prepare", ARCHIVES)
            raise UseError(
                f"{beside}: no such folder: PASCAL VOC 2012 is not prepared here ({prepare}); "
                "data of your own are named by --im_path, --gt_path and --list"
            )
        for path in options.list or (beside / "train_aug.txt", beside / "val.txt"):
            pairs += find_pairs(im_path, gt_path, path)
    label_map, n_class, names = None, options.n_class, None
    if options.label_map:
        label_map = LabelMap.read(options.label_map)
        label_map.check_ignored(options.ignore_index)
        n_class, names = len(label_map.names), list(label_map.names)
    if names is None or options.class_names:
        names = load_class_names(options.class_names, n_class)
    checked = check_all(pairs, n_class, options.workers, options.ignore_index, label_map)
    return report(checked, names, len(set(pairs)), options.ignore_index, options.all)


if __name__ == "__main__":
    sys.exit(main())
