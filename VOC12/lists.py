"""Which pictures and labels belong together: list files, folders of one's own, and the VOC devkit."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from sparsemask.errors import UseError
from sparsemask.files import must_exist
from VOC12.palette import VOC_CLASSES

PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
STAMP = "prepared.json"  # written last by prepare.py: its presence says that the folder is complete

Pair = tuple[Path, Path]


def is_prepared(folder: str | os.PathLike) -> bool:
    """Whether `folder` holds VOC as completed by VOC12/prepare.py."""
    return (Path(folder) / STAMP).is_file()


def read_list(path: str | os.PathLike) -> list[str]:
    """Read a list file: one name, or "picture label" (two paths), a line; blank and `#` lines do not count.

    Duplicates are kept: repeating a line is how a list gives a picture more weight.

    Raises:
        UseError: no such file, not text, or no entries.
    """
    path = must_exist(path, "list")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UseError(f"{path}: not a text file; a list has one name a line") from None
    entries = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not entries:
        raise UseError(f"{path}: the list is empty; it needs one name a line")
    return entries


def load_class_names(path: str | os.PathLike | None, n_class: int) -> list[str]:
    """Names of the classes, one a line of `path`; without it VOC's for 21 classes, else "class i"."""
    if path is None:
        return list(VOC_CLASSES) if n_class == len(VOC_CLASSES) else [f"class {i}" for i in range(n_class)]
    names = read_list(path)
    if len(names) != n_class:
        raise UseError(f"{path}: {len(names)} class names for {n_class} classes; give one a line, background too")
    return names


def find_pairs(im_path: str | os.PathLike, gt_path: str | os.PathLike, list_path: str | os.PathLike) -> list[Pair]:
    """Like :func:`pairs_from_lists`, absent files included."""
    im_path, gt_path, list_path = Path(im_path), Path(gt_path), Path(list_path)
    entries = read_list(list_path)
    must_exist(im_path, "picture folder")
    must_exist(gt_path, "label folder")
    pictures, labels = _Folder(im_path), _Folder(gt_path)
    pairs = []
    for entry in entries:
        columns = entry.split()
        if len(columns) == 2 and all(Path(column).suffix in PICTURE_SUFFIXES for column in columns):
            bases = (
                list_path.parent,
                list_path.parent.parent,
                list_path.parents[min(2, len(list_path.parents) - 1)],
            )
            pairs.append((_first(columns[0], (im_path, *bases)), _first(columns[1], (gt_path, *bases))))
        else:
            pairs.append((pictures.picture(entry), labels.label(entry)))
    return pairs


def pairs_from_lists(
    im_path: str | os.PathLike, gt_path: str | os.PathLike, list_path: str | os.PathLike
) -> list[Pair]:
    """Pair the pictures of `im_path` (.jpg, .jpeg, .png) with the labels of `gt_path` (.png) named in a list.

    Names may carry their suffix. The paths of two-column lines are taken from the folders, from the list's
    own folder or from the one or two above it.

    Raises:
        UseError: an empty list, or absent files: names the first and counts them.
    """
    pairs = find_pairs(im_path, gt_path, list_path)
    require(pairs, list_path)
    return pairs


def require(pairs: Sequence[Pair], list_path: object) -> None:
    """Raise a UseError that names the first absent file of `pairs` and counts them."""
    for what, column in (("picture", 0), ("label", 1)):
        absent = [pair[column] for pair in pairs if not pair[column].is_file()]
        if absent:
            raise UseError(
                f"{list_path}: {len(absent)} of {len(pairs)} {what}s absent, first {absent[0]}; "
                "check the folders, or prepare the data again"
            )


def devkit_root(voc_root: str | os.PathLike) -> Path:
    """Folder that holds JPEGImages, for a root given as .../VOC2012, .../VOCdevkit or the folder above."""
    root = must_exist(voc_root, "VOC root")
    for candidate in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (candidate / "JPEGImages").is_dir():
            return candidate
    raise UseError(f"{root}: no JPEGImages below it; give the folder VOC2012, VOCdevkit or the one above")


def find_devkit_pairs(voc_root: str | os.PathLike, list_name: str, gt_folder: str | None = None) -> list[Pair]:
    """Like :func:`devkit_pairs`, absent files included."""
    root = devkit_root(voc_root)
    lists = root / "ImageSets" / "Segmentation"
    list_path = next((p for p in (lists / f"{list_name}.txt", lists / list_name) if p.is_file()), Path(list_name))
    if not list_path.is_file() and list_name == "train_aug" and (lists / "train.txt").is_file():
        list_path = lists / "train.txt"  # the original devkit has no augmented labels
    if not list_path.is_file():
        known = ", ".join(sorted(path.stem for path in lists.glob("*.txt"))) or "none"
        raise UseError(f"no list '{list_name}' in {lists}; there are: {known}")
    folders = ["SegmentationClass", "SegmentationClassAug"]
    if "aug" in list_path.stem.lower():
        folders.reverse()
    folders = [gt_folder] if gt_folder else [name for name in folders if (root / name).is_dir()]
    if not folders:
        raise UseError(f"{root}: neither SegmentationClass nor SegmentationClassAug is there; name the label folder")
    best: tuple[int, list[Pair]] | None = None
    for name in folders:
        pairs = find_pairs(root / "JPEGImages", root / name, list_path)
        absent = sum(not label.is_file() for _, label in pairs)
        if best is None or absent < best[0]:
            best = (absent, pairs)
    return best[1]


def devkit_pairs(voc_root: str | os.PathLike, list_name: str, gt_folder: str | None = None) -> list[Pair]:
    """Pairs of a devkit folder's list.

    Args:
        voc_root: .../VOC2012, .../VOCdevkit or the folder above.
        list_name: of ImageSets/Segmentation ("train_aug"), or the path of any list file.
        gt_folder: label folder below VOC2012; by default the one of SegmentationClass and
            SegmentationClassAug that has the labels (the latter first if the list's name says "aug").

    Raises:
        UseError: nothing like a devkit there, no such list, or absent files.
    """
    pairs = find_devkit_pairs(voc_root, list_name, gt_folder)
    require(pairs, list_name)
    return pairs


class _Folder:
    """A folder listed once: ten thousand names need no hundred thousand questions to the file system."""

    def __init__(self, path: Path) -> None:
        self.path, self.files = path, set(os.listdir(path))

    def _find(self, name: str, suffixes: tuple[str, ...]) -> Path:
        if "/" in name:  # a folder of folders (city/picture): ask the file system
            found = (name + s for s in ("", *suffixes) if (self.path / (name + s)).is_file())
        else:
            found = (name + s for s in ("", *suffixes) if name + s in self.files)
        fallback = name if Path(name).suffix in PICTURE_SUFFIXES else name + suffixes[0]
        return self.path / next(found, fallback)

    def picture(self, name: str) -> Path:
        return self._find(name, PICTURE_SUFFIXES)

    def label(self, name: str) -> Path:
        if Path(name).suffix in PICTURE_SUFFIXES:  # a picture's file name: its label bears the same stem
            name = str(Path(name).with_suffix(""))
        return self._find(name, (".png", ".PNG"))


def _first(name: str, bases: tuple[Path, ...]) -> Path:
    # Public lists write "/JPEGImages/x.jpg" and mean it from the devkit's root.
    options = [Path(name), *(base / name.lstrip("/") for base in bases)]
    return next((path for path in options if path.is_file()), options[1])
