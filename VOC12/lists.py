"""Which images and labels belong together: list files, folders of one's own, and the VOC devkit.

List files of every task are read here: UTF-8, with a byte order mark or without (UTF-16 with one), an entry a line.
Blank lines and lines that begin with "#" do not count. An entry is a name, or several paths: "a.jpg a.png", separated
by spaces, tabs, commas or semicolons. Names with spaces need no quotes where every path ends in a known suffix, else
double or single ones.
"""

from __future__ import annotations

import codecs
import os
import re
from collections import Counter
from collections.abc import Sequence
from operator import itemgetter
from pathlib import Path

from sparsemask.errors import UseError
from sparsemask.files import must_exist
from sparsemask.VOC12.images import SUFFIXES, is_picture, without_suffix
from sparsemask.VOC12.palette import VOC_CLASSES

# Of labels, first come first served: formats that keep every number. JPEG does not, and WebP has no single channel.
LABEL_SUFFIXES = (".png", ".bmp", ".tif", ".tiff", ".gif")
_LARGEST = 1 << 28  # bytes of a list
_QUOTED, _BETWEEN = r"""\"([^"]+)\"|'([^']+)'""", r"(?:\s*[,;\t]\s*|\s+|$)"
ABSENT = "check the folders, or prepare the data again"
STAMP = "prepared.json"  # written last by prepare.py: its presence says that the folder is complete

Pair = tuple[Path, Path]


def read_list(path: str | os.PathLike) -> list[str]:
    """Read a list file, see the module's docstring: its entries, each as it stands.

    Duplicates are kept: repeating a line is how a list gives an image more weight.

    Raises:
        UseError: no such file, not text, or no entries.
    """
    return list(map(itemgetter(1), read_numbered(path)))


def read_numbered(path: str | os.PathLike) -> list[tuple[int, str]]:
    """(number of the line, from 1, entry) of a list file; see :func:`read_list`."""
    path = must_exist(path, "list")
    if not path.is_file():
        raise UseError(f"{path}: not a text file but a folder or a device; a list has one name a line")
    if path.stat().st_size > _LARGEST:
        raise UseError(f"{path}: {path.stat().st_size} bytes are no list; a list has one name a line")
    data = path.read_bytes()
    code = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = data.decode(code)
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise UseError(f"{path}: not a text file; a list has one name a line")
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    entries = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not entries:
        raise UseError(f"{path}: the list is empty; it needs one name a line")
    return entries


def read_names(path: str | os.PathLike) -> list[str]:
    """The entries of a list of names, without the quotes around them."""
    return [unquoted(entry) for entry in read_list(path)]


def unquoted(entry: str) -> str:
    """An entry that is one name, without the quotes around it."""
    quoted = len(entry) > 2 and entry[0] == entry[-1] and entry[0] in "\"'" and entry[0] not in entry[1:-1]
    return entry[1:-1] if quoted else entry


def columns_of(entry: str, suffixes: Sequence[str] = SUFFIXES) -> list[str]:
    """The paths of an entry, see the module's docstring.

    Args:
        entry: a line of a list.
        suffixes: how paths end, in small letters.
    """
    endings = "|".join(map(re.escape, sorted(suffixes, key=len, reverse=True)))
    for path in (rf"[^\"'].*?(?:{endings})", r"[^\s,;\"']\S*?"):
        pattern, paths, position = re.compile(f"(?:{_QUOTED}|({path})){_BETWEEN}", re.IGNORECASE), [], 0
        while position < len(entry) and (match := pattern.match(entry, position)):
            paths.append(next(group for group in match.groups() if group is not None))
            position = match.end()
        if paths and position == len(entry):
            return paths
    return entry.split()


def load_class_names(path: str | os.PathLike | None, n_class: int) -> list[str]:
    """Names of the classes, one a line of `path`; without it VOC's for 21 classes, else "class i"."""
    if path is None:
        return list(VOC_CLASSES) if n_class == len(VOC_CLASSES) else [f"class {i}" for i in range(n_class)]
    names = read_list(path)
    if len(names) != n_class:
        raise UseError(f"{path}: {len(names)} class names for {n_class} classes; give one a line, background too")
    return names


def lists_pairs(path: str | os.PathLike) -> bool:
    """Whether every line of a list names an image and its label by their paths, which then need no folders."""
    return all(_is_pair(columns_of(entry)) for entry in read_list(path))


def _is_pair(columns: list[str]) -> bool:
    return len(columns) == 2 and all(map(is_picture, columns))


def find_pairs(
    im_path: str | os.PathLike | None, gt_path: str | os.PathLike | None, list_path: str | os.PathLike
) -> list[Pair]:
    """Like :func:`pairs_from_lists`, absent files included."""
    list_path = Path(list_path)
    entries = read_list(list_path)
    if im_path is None or gt_path is None:
        for entry in entries:
            if not _is_pair(columns_of(entry)):
                raise UseError(
                    f'{list_path}: "{entry}" is no pair of paths, "picture label": names need --im_path and --gt_path'
                )
    bases = (list_path.parent, list_path.parent.parent, list_path.parents[min(2, len(list_path.parents) - 1)])
    images, labels = (
        _Folder(list_path.parent if path is None else must_exist(path, title))
        for path, title in ((im_path, "picture folder"), (gt_path, "label folder"))
    )
    pairs = []
    for entry in entries:
        columns = columns_of(entry)
        if images.has(entry):  # whatever it looks like
            pairs.append((images.picture(entry), labels.label(entry)))
        elif _is_pair(columns):
            image, label = columns
            pairs.append((_first(image, (images.path, *bases)), _first(label, (labels.path, *bases))))
        else:
            name = unquoted(entry)
            pairs.append((images.picture(name), labels.label(name)))
    return pairs


def pairs_from_lists(
    im_path: str | os.PathLike | None, gt_path: str | os.PathLike | None, list_path: str | os.PathLike
) -> list[Pair]:
    """Pair images with labels that a list names.

    Names may have a suffix and folders ("val/0001"). The paths of two-column lines are relative to the folders, to the
    list's own folder, or to the one or two above it; lists of such lines alone need no folders.

    Args:
        im_path: folder of the images (any of SUFFIXES); None: see above.
        gt_path: folder of the labels (LABEL_SUFFIXES); None: see above.
        list_path: the list file.

    Returns:
        (image, label) files, in the order of the list.

    Raises:
        UseError: the list is empty, or files are absent; the first is named, all are counted.
    """
    pairs = find_pairs(im_path, gt_path, list_path)
    require(pairs, list_path)
    return pairs


def require(pairs: Sequence[Pair], list_path: object) -> None:
    """Raise a UseError that names the first absent file of `pairs` and counts them."""
    for title, column in (("picture", 0), ("label", 1)):
        absent = [pair[column] for pair in pairs if not pair[column].is_file()]
        if absent:
            raise UseError(f"{list_path}: {len(absent)} of {len(pairs)} {title}s absent, first {absent[0]}; {ABSENT}")


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
        available = ", ".join(sorted(path.stem for path in lists.glob("*.txt"))) or "none"
        raise UseError(f"no list '{list_name}' in {lists}; there are: {available}")
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
    """A folder whose files are listed once, which saves a query to the file system for every name."""

    def __init__(self, path: Path) -> None:
        self.path, self._listed, self._usual = path, {}, {}

    def _files(self, folder: str) -> dict[str, str]:
        """Names in a folder below by themselves, and by their stem with the suffix in small letters."""
        if folder not in self._listed:
            directory = self.path / folder
            names = sorted(os.listdir(directory)) if directory.is_dir() else []
            self._listed[folder] = {**{_small(name): name for name in names}, **{name: name for name in names}}
        return self._listed[folder]

    def has(self, name: str) -> bool:
        """Whether a file of exactly this name is there."""
        return "/" not in name and name in self._files("")

    def _find(self, name: str, suffixes: tuple[str, ...]) -> Path:
        tail = name.rpartition("/")[2]
        head = name[: len(name) - len(tail)]  # a folder of folders (city/image)
        files = self._files(head)
        for candidate in (tail, *(tail + suffix for suffix in suffixes)):
            if file_name := files.get(candidate) or files.get(_small(candidate)):
                return self.path / (head + file_name)
        if Path(name).suffix.lower() in SUFFIXES:
            return self.path / name
        if (head, suffixes) not in self._usual:
            counts = Counter(
                kind for listed_name in files if (kind := os.path.splitext(listed_name)[1]).lower() in suffixes
            )
            self._usual[head, suffixes] = counts.most_common(1)[0][0] if counts else suffixes[0]
        return self.path / (name + self._usual[head, suffixes])  # absent: as most files here are called

    def picture(self, name: str) -> Path:
        return self._find(name, SUFFIXES)

    def label(self, name: str) -> Path:
        # Of an image's file name: its label bears the same stem.
        return self._find(without_suffix(name), LABEL_SUFFIXES)


def _small(name: str) -> str:
    stem, suffix = os.path.splitext(name)
    return stem + suffix.lower()


def _first(name: str, bases: tuple[Path, ...]) -> Path:
    # Public lists write "/JPEGImages/x.jpg" and mean it from the devkit's root.
    options = [Path(name), *(base / name.lstrip("/") for base in bases)]
    return next((path for path in options if path.is_file()), options[1])
