"""Classified pictures in every public layout, few and tiny, and the task's options on them."""

from __future__ import annotations

import io
import pickle
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from small_config import configured
from sparsemask.config import RunConfig
from sparsemask.tasks.classification.options import ClassificationData

CIFAR10 = [f"data_batch_{k}" for k in range(1, 6)], "test_batch"
CIFAR100 = ["train"], "test"


def options(**given) -> RunConfig:
    """The task's configuration."""
    return configured(ClassificationData, **{"task": "classification", "n_worker": 0, **given})


def pictures(count: int, seed: int = 0, side: int = 32, classes: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """Noise uint8 (N, side, side, 3), and classes in turn."""
    found = np.random.default_rng(seed).integers(256, size=(count, side, side, 3)).astype(np.uint8)
    return found, np.arange(count, dtype=np.int64) % classes


def binary(x: np.ndarray, y: np.ndarray, fine: bool = False) -> bytes:
    """Records of CIFAR's binary files; `fine`: CIFAR-100's, with a coarse label before."""
    planes = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    head = [np.full((len(y), 1), 7), y[:, None]] if fine else [y[:, None]]
    return np.concatenate([*head, planes], 1).astype(np.uint8).tobytes()


def pickled(x: np.ndarray, y: np.ndarray, fine: bool = False) -> bytes:
    """A batch as the python archives have it (keys and text as bytes, as Python 2 wrote them)."""
    planes = np.ascontiguousarray(x.transpose(0, 3, 1, 2).reshape(len(x), -1))
    labels = {b"fine_labels": y.tolist(), b"coarse_labels": [0] * len(y)} if fine else {b"labels": y.tolist()}
    return pickle.dumps({b"data": planes, **labels, b"filenames": [b"a.png"] * len(x)}, protocol=2)


def cifar_files(kind: str, each: int = 4) -> tuple[dict[str, bytes], tuple, tuple]:
    """(files of a public form, (x, y) of training, of test); kind: 10-binary, 100-binary, 10-python, 100-python."""
    classes, form = kind.split("-")
    fine = classes == "100"
    names, test = CIFAR100 if fine else CIFAR10
    encode, ending = (binary, ".bin") if form == "binary" else (pickled, "")
    parts = [pictures(each, seed, classes=int(classes)) for seed in range(len(names) + 1)]
    content = {name + ending: encode(*part, fine) for name, part in zip([*names, test], parts, strict=True)}
    words = [f"class{k}" for k in range(int(classes))]
    if form == "binary":
        content["fine_label_names.txt" if fine else "batches.meta.txt"] = ("\n".join(words) + "\n\n").encode()
    else:
        key = "fine_label_names" if fine else "label_names"
        content["meta" if fine else "batches.meta"] = pickle.dumps({key: words}, protocol=2)
    training = tuple(np.concatenate(arrays) for arrays in zip(*parts[:-1], strict=True))
    return content, training, parts[-1]


def write_folder(folder: Path, content: dict[str, bytes]) -> Path:
    """The files unpacked."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


def write_archive(path: Path, content: dict[str, bytes], inside: str = "cifar") -> Path:
    """The files as .tar.gz, in a folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as archive:
        for name, data in content.items():
            member = tarfile.TarInfo(f"{inside}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_npz(folder: Path, train: int = 30, test: int = 10, side: int = 8) -> Path:
    """train.npz and test.npz of noise."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, seed in (("train", train, 1), ("test", test, 2)):
        x, y = pictures(count, seed, side)
        np.savez(folder / f"{name}.npz", x=x, y=y)
    return folder


def write_classes(folder: Path, counts: dict[str, int], size: tuple[int, int] = (20, 30), suffix: str = ".png") -> Path:
    """Class folders with pictures of (height, width)."""
    rng = np.random.default_rng(3)
    for name, count in counts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            picture = rng.integers(256, size=(*size, 3)).astype(np.uint8)
            Image.fromarray(picture).save(folder / name / f"{k:03d}{suffix}")
    return folder
