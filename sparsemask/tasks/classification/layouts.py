"""Which classified images there are below a --data_root.

    CIFAR        cifar-10 or -100, binary or python, as archives or unpacked, see :mod:`classification_cifar`
    npz          train*.npz and test*.npz (val*, eval*): x uint8 (N, H, W, 3), y (N,); class names in classes.json
    folders      train/CLASS/* and val/CLASS/*, ImageNet's layout; or CLASS/* alone

Names of parts are known in any case: train, training; val, valid, validation, test, testing, eval, of which the first
that is there validates. Where only training images are, every tenth of each class is for validation.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsemask.containers import open_npz, read_json
from sparsemask.errors import UseError
from sparsemask.tasks.classification import cifar
from sparsemask.tasks.classification.data import Part
from sparsemask.VOC12.images import SUFFIXES, is_picture, picture_size, read_picture

SMALL = 64  # images of files no larger than that, and of one size, are read into memory
_MEMORY = 2 << 30  # bytes of them
_TENTH = 10
_TRAINING = ("train", "training")
_VALIDATION = ("val", "valid", "validation", "test", "testing", "eval")


@dataclass(frozen=True)
class LabelledPictures:
    """A data set: its name in words, its classes, its parts.

    Attributes:
        origin: where the training and the validation images were read from, in words.
        unused: what was not read.
    """

    title: str
    classes: list[str]
    training: Part
    validation: Part
    origin: tuple[str, str] = ("", "")
    unused: tuple[str, ...] = ()

    def summary(self) -> str:
        """Summary line: numbers of images and classes, their origin, and what is not used."""
        parts = zip((self.training, self.validation), ("training", "validation"), self.origin, strict=True)
        descriptions = [
            f"{len(part)} for {purpose}" + (f" ({origin})" if origin else "") for part, purpose, origin in parts
        ]
        line = f"{', '.join(descriptions)}, {len(self.classes)} classes"
        return line + (f"; not used: {', '.join(self.unused)}" if self.unused else "")


def find_pictures(root: str | os.PathLike) -> LabelledPictures:
    """The images of a data root; UseError where there are none, or none that can be read."""
    root = Path(root)
    if not root.exists():
        raise UseError(f"--data_root {root}: no such file or folder")
    cifar_data = cifar.find(root)
    if cifar_data is not None:
        title, classes, *parts = cifar_data
        return LabelledPictures(title, classes, *(Part(*part) for part in parts))
    if root.is_file():
        if root.suffix != ".npz":
            raise UseError(f"--data_root {root}: neither a CIFAR archive nor .npz")
        return _from_npz([root], [], root.parent)
    files = {split: _npz_of(root, starts) for split, starts in (("train", _TRAINING), ("eval", _VALIDATION))}
    if files["train"]:
        return _from_npz(files["train"], files["eval"], root)
    return _from_folders(root)


def split_tenths(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of training and validation images: every tenth image of each class validates.

    Of a class with fewer than ten images the last one validates; a single image trains.
    """
    validates = np.zeros(len(labels), bool)
    for label in np.unique(labels):
        (members,) = np.nonzero(labels == label)
        chosen = members[_TENTH - 1 :: _TENTH] if len(members) >= _TENTH else members[1:][-1:]
        validates[chosen] = True
    return np.flatnonzero(~validates), np.flatnonzero(validates)


def _npz_of(root: Path, starts: Sequence[str]) -> list[Path]:
    return sorted(p for p in root.glob("*.npz") if p.name.lower().startswith(tuple(starts)))


def _from_npz(train: list[Path], validation: list[Path], root: Path) -> LabelledPictures:
    for files in (train, validation):
        if len(files) > 1:
            raise UseError(
                f"{root}: several files for one part ({', '.join(p.name for p in files)}): leave one of them"
            )
    parts = [read_npz(file) for file in (*train, *validation)]
    classes = _class_names(root / "classes.json", 1 + max(int(part.labels.max()) for part in parts))
    title = root.resolve().name
    names = tuple(file.name for file in (*train, *validation))
    if len(parts) == 1:
        return _whole(title, classes, parts, names[0])
    return LabelledPictures(title, classes, *parts, names)


def _whole(
    title: str, classes: list[str], parts: list[Part], source: str, unused: tuple[str, ...] = ()
) -> LabelledPictures:
    """A data set of one part, of which a tenth validates."""
    train, validation = split_tenths(parts[0].labels)
    if not len(validation):
        raise UseError(f"{title}: too few pictures to leave any for validation")
    title, origin = f"{title}, every tenth picture", (source, "every tenth of each class")
    return LabelledPictures(title, classes, parts[0].take(train), parts[0].take(validation), origin, unused)


def read_npz(path: str | os.PathLike) -> Part:
    """The images of an .npz: x uint8 (N, H, W, 3) or grey (N, H, W), (N, H, W, 1); y whole numbers (N,).

    Raises:
        UseError: missing, truncated, other arrays.
    """
    path = Path(path)
    with open_npz(path, "not readable as an .npz of arrays") as content:
        if "x" not in content or "y" not in content:
            raise UseError(f"{path}: expected arrays x (uint8 N, H, W, 3) and y (N,)")
        images, labels = content["x"], content["y"]
    if images.ndim == 3:
        images = images[..., None]
    valid = images.dtype == np.uint8 and images.ndim == 4 and images.shape[-1] in (1, 3) and images.size
    if not valid:
        raise UseError(f"{path}: x must be uint8 (N, H, W, 3), found {images.dtype} {images.shape}")
    if labels.shape != (len(images),) or labels.dtype.kind not in "iu" or labels.min() < 0:
        raise UseError(f"{path}: y must be {len(images)} classes from 0, found {labels.dtype} {labels.shape}")
    if images.shape[-1] == 1:
        images = images.repeat(3, axis=-1)
    return Part(images, labels.astype(np.int64))


def _class_names(path: Path, count: int) -> list[str]:
    """Of a classes.json, a list, or numbers where there is none."""
    if not path.is_file():
        return [str(k) for k in range(count)]
    names = read_json(path)
    if not isinstance(names, list) or len(names) < count or not all(isinstance(name, str) for name in names):
        raise UseError(f"{path}: expected a list of {count} class names at least")
    return names


def _from_folders(root: Path) -> LabelledPictures:
    inside = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    train, *validation = (_split_folder(inside, names) for names in (_TRAINING, *((name,) for name in _VALIDATION)))
    validation = [folder for folder in validation if folder is not None]
    title = root.resolve().name
    if train is None:
        if inside and all(folder.name.lower() in (*_TRAINING, *_VALIDATION) for folder in inside):
            raise UseError(f"{root}: {_words(inside)} here, of which none has class folders to train on (train/CLASS/)")
        if validation:
            raise UseError(
                f"{root}: {_words(validation)} beside {len(inside) - len(validation)} class folders: "
                "put what trains into train/"
            )
        classes, files = _classes_of(root)
        return _whole(title, classes, _parts(files), f"{len(inside)} class folders in {root}")
    classes, files = _classes_of(train)
    unused = tuple(f"{folder.name}/" for folder in inside if folder not in (train, *validation[:1]))
    if not validation:
        return _whole(title, classes, _parts(files), f"{train.name}/", unused)
    class_names, validation_files = _classes_of(validation[0], may_be_empty=True)
    strange = sorted(set(class_names) - set(classes))
    if strange:
        raise UseError(f"{validation[0]}: class '{strange[0]}' is not among the {len(classes)} of {train}")
    numbers = {name: k for k, name in enumerate(classes)}
    parts = _parts(files, [(path, numbers[class_names[k]]) for path, k in validation_files])
    return LabelledPictures(title, classes, *parts, (f"{train.name}/", f"{validation[0].name}/"), unused)


def _split_folder(inside: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The folder that is a part of the data set by its name, in any case, and by the folders in it.

    A folder of that name with images alone is a class (one may be called "train").
    """
    matching = [p for p in inside if p.name.lower() in names and any(q.is_dir() for q in p.iterdir())]
    empty = [p for p in inside if p.name.lower() in names and not any(p.iterdir())]
    if len(matching) > 1:
        raise UseError(f"{matching[0].parent}: {_words(matching)} are one part by their names: leave one of them")
    return (matching or empty or [None])[0]


def _words(folders: Sequence[Path]) -> str:
    return " and ".join(f"{folder.name}/" for folder in folders)


def _classes_of(root: Path, may_be_empty: bool = False) -> tuple[list[str], list[tuple[Path, int]]]:
    """Names of the folders below `root`, sorted, and (file, class) of all images in them, at any depth.

    Args:
        may_be_empty: accept fewer than two classes, and classes without images.
    """
    classes = sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    labelled_files: list[tuple[Path, int]] = []
    for number, name in enumerate(classes):
        before = len(labelled_files)
        for folder, inner, files in os.walk(root / name):
            inner.sort()
            chosen = sorted(filter(is_picture, files))
            labelled_files += [(Path(folder) / file, number) for file in chosen]
        if len(labelled_files) == before and not may_be_empty:
            raise UseError(f"{root / name}: no pictures of class '{name}' ({', '.join(SUFFIXES)})")
    if not labelled_files or (len(classes) < 2 and not may_be_empty):
        description = f"{len(classes)} class folder(s)" if classes else "nothing"
        raise UseError(
            f"{root}: {description} here; expected CIFAR's files, train*.npz and test*.npz, or a folder for each of 2 "
            "classes or more, below train/ and val/ or here"
        )
    return classes, labelled_files


def _parts(*listed: list[tuple[Path, int]]) -> list[Part]:
    """Parts of (file, class) lists; in memory if all images are small and of one size."""
    parts = [Part([p for p, _ in files], np.array([k for _, k in files], np.int64)) for files in listed]
    size = picture_size(parts[0].pictures[0])
    count = sum(map(len, parts))
    small = max(size) <= SMALL and count * size[0] * size[1] * 3 <= _MEMORY
    if small and all(picture_size(path) == size for part in parts for path in part.pictures):
        return [Part(np.stack([read_picture(path) for path in part.pictures]), part.labels) for part in parts]
    return parts
