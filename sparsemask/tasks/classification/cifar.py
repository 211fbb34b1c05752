"""CIFAR-10 and CIFAR-100 as published: archives or unpacked, in binary or as Python's pickles.

The binary files (Krizhevsky, "Learning multiple layers of features from tiny images", 2009; the data set's page) are
records of one label byte (CIFAR-100: coarse, then fine) and 3072 bytes, red, green and blue planes of 32x32. The
python files are pickled dictionaries; what is not an array or a list of numbers in them is never built. Archives are
read in memory: nothing is unpacked, so no name in one can lead anywhere.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from sparsemask.containers import Tar, is_tar
from sparsemask.errors import UseError
from sparsemask.safe_pickle import read_mapping

Pictures = tuple[np.ndarray, np.ndarray]  # uint8 (N, 32, 32, 3), int64 (N,)
Files = dict[str, bytes]

_SIDE = 32
_LARGEST = 256 << 20  # bytes of a file in an archive: CIFAR-100's largest has 155 MB
_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class _Form:
    """One of the four public forms: its name, names of archive and folder, files of each part, file of class names."""

    title: str
    archive: str
    folder: str
    training: tuple[str, ...]
    validation: str
    names: str
    classes: int
    read: Callable[[bytes, int, str], Pictures]
    read_names: Callable[[bytes, str], list[str]]

    @property
    def files(self) -> tuple[str, ...]:
        return (*self.training, self.validation)


def find(root: Path) -> tuple[str, list[str], Pictures, Pictures] | None:
    """(title, classes, training, validation) of an archive, or of a folder with one form's archive or files.

    None where there are no files of CIFAR.

    Raises:
        UseError: both data sets are there, or files are missing or truncated.
    """
    if root.is_file():
        if not is_tar(root):
            return None
        return _from_archive(root)
    candidates = [(form, path) for form in _FORMS for path in _places(root, form)]
    if not candidates:
        return None
    if len({form.classes for form, _ in candidates}) > 1:
        raise UseError(f"{root}: CIFAR-10 and CIFAR-100 are both here: --data_root must name one of them")
    form, path = candidates[0]  # of several forms of one data set the binary one
    if path.is_file():
        return _from_archive(path)
    return _read(form, {p.name: p.read_bytes() for p in path.iterdir() if p.name in (*form.files, form.names)}, path)


def _places(root: Path, form: _Form) -> list[Path]:
    """Folders and archives of a form, at `root` or right below it."""
    folders = [p for p in (root, root / form.folder) if any((p / name).is_file() for name in form.training)]
    archives = [p for ending in (".tar.gz", ".tgz", ".tar") if (p := root / (form.archive + ending)).is_file()]
    return folders + archives


def _from_archive(path: Path) -> tuple[str, list[str], Pictures, Pictures]:
    file_names = {name for form in _FORMS for name in (*form.files, form.names)}
    contents: Files = {}
    with Tar(path, "torn or not an archive; download it again") as archive:
        for member in archive:
            name = PurePosixPath(member.name).name
            if not member.isfile() or name not in file_names or name in contents:
                continue
            if member.size > _LARGEST:
                raise UseError(f"{path}: {member.name} has {member.size} bytes, more than any file of CIFAR's")
            contents[name] = archive.read(member, _LARGEST)
    form = next((form for form in _FORMS if any(name in contents for name in form.training)), None)
    if form is None:
        raise UseError(f"{path}: an archive without CIFAR's files ({', '.join(form.archive for form in _FORMS)})")
    return _read(form, contents, path)


def _read(form: _Form, files: Files, origin: Path) -> tuple[str, list[str], Pictures, Pictures]:
    missing = [name for name in form.files if name not in files]
    if missing:
        raise UseError(f"{origin}: {missing[0]} is missing ({form.title} has {len(form.files)} files of pictures)")
    by_file = {name: form.read(files[name], form.classes, f"{origin}, {name}") for name in form.files}
    training = tuple(np.concatenate(arrays) for arrays in zip(*(by_file[name] for name in form.training), strict=True))
    names = form.read_names(files[form.names], f"{origin}, {form.names}") if form.names in files else []
    if names and len(names) != form.classes:
        raise UseError(f"{origin}, {form.names}: {len(names)} class names, expected {form.classes}")
    if not names:
        names = list(_NAMES) if form.classes == len(_NAMES) else [str(k) for k in range(form.classes)]
    return form.title, names, training, by_file[form.validation]


def _read_binary(content: bytes, classes: int, title: str) -> Pictures:
    """Records of a binary file; the label is the byte right before the planes."""
    head = 1 if classes == len(_NAMES) else 2
    size = head + 3 * _SIDE**2
    if not content or len(content) % size:
        raise UseError(f"{title}: {len(content)} bytes are no whole number of records of {size}; download it again")
    records = np.frombuffer(content, np.uint8).reshape(-1, size)
    return _checked(records[:, head:], records[:, head - 1], classes, title)


def _read_pickle(content: bytes, classes: int, title: str) -> Pictures:
    entries = read_mapping(io.BytesIO(content), title)
    data, labels = entries.get("data"), entries.get("labels" if classes == len(_NAMES) else "fine_labels")
    well_formed = (
        isinstance(data, np.ndarray) and data.dtype == np.uint8 and data.ndim == 2 and data.shape[1] == 3 * _SIDE**2
    )
    if not well_formed or not isinstance(labels, list) or len(labels) != len(data) or not len(data):
        raise UseError(f"{title}: expected data, uint8 (N, {3 * _SIDE**2}), and as many labels")
    if not all(isinstance(label, int) for label in labels):
        raise UseError(f"{title}: labels that are no whole numbers")
    return _checked(data, np.array(labels), classes, title)


def _checked(planes: np.ndarray, labels: np.ndarray, classes: int, title: str) -> Pictures:
    if labels.min() < 0 or labels.max() >= classes:
        raise UseError(f"{title}: label {max(labels.max(), -labels.min())} beyond the {classes} classes")
    images = planes.reshape(-1, 3, _SIDE, _SIDE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels.astype(np.int64)


def _names_of_text(content: bytes, title: str) -> list[str]:
    try:
        return content.decode().split()
    except UnicodeDecodeError:
        raise UseError(f"{title}: no text") from None


def _names_of_pickle(content: bytes, title: str) -> list[str]:
    entries = read_mapping(io.BytesIO(content), title)
    names = entries.get("fine_label_names", entries.get("label_names"))
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UseError(f"{title}: expected a list of class names")
    return names


_BATCHES = tuple(f"data_batch_{k}" for k in range(1, 6))
_FORMS = (
    _Form("CIFAR-10", "cifar-10-binary", "cifar-10-batches-bin", tuple(f"{name}.bin" for name in _BATCHES),
          "test_batch.bin", "batches.meta.txt", 10, _read_binary, _names_of_text),
    _Form("CIFAR-100", "cifar-100-binary", "cifar-100-binary", ("train.bin",), "test.bin", "fine_label_names.txt",
          100, _read_binary, _names_of_text),
    _Form("CIFAR-10", "cifar-10-python", "cifar-10-batches-py", _BATCHES, "test_batch", "batches.meta", 10,
          _read_pickle, _names_of_pickle),
    _Form("CIFAR-100", "cifar-100-python", "cifar-100-python", ("train",), "test", "meta", 100, _read_pickle,
          _names_of_pickle),
)  # fmt: skip
