"""Conversion of the public label formats to index PNG, one file at a time (run in worker processes)."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.io import loadmat

from sparsemask.errors import UseError
from sparsemask.VOC12.bulk import remove_leftovers, write_bulk
from sparsemask.VOC12.images import read_picture
from sparsemask.VOC12.palette import out_of_range, read_label, save_label
from sparsemask.VOC12.workers import run_jobs

_PNG_HEAD, _PNG_TAIL = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


def read_mat_label(data: bytes, name: object) -> np.ndarray:
    """Class indices, uint8 (H, W), of an SBD file (struct `GTcls`, field `Segmentation`)."""
    try:
        label = loadmat(io.BytesIO(data), variable_names=["GTcls"])["GTcls"][0, 0]["Segmentation"]
        label = np.asarray(label)
    except Exception as error:  # a truncated file makes the reader fail in a dozen ways, none of them ours
        reason = f"{type(error).__name__}: {error}"
        raise UseError(f"{name}: not readable as an SBD label, GTcls.Segmentation ({reason})") from None
    if label.ndim != 2 or label.dtype.kind not in "uif" or label.size == 0:
        raise UseError(f"{name}: GTcls.Segmentation is {label.shape} {label.dtype}, not a (H, W) map of classes")
    return label


def mat_to_png(data: bytes | Path, target: Path, name: object) -> None:
    """Write an SBD `.mat` (its content or its path) as an index PNG."""
    _save(target, read_mat_label(_content(data), name), name)


def png_to_index(data: bytes | Path, target: Path, name: object) -> None:
    """Write a colour, palette or grey VOC label (its content or its path) as an index PNG."""
    _save(target, read_label(io.BytesIO(_content(data)), colours="decode", name=name), name)


def copy_picture(data: bytes, target: Path, name: object) -> None:
    """Write an image's bytes unchanged, after decoding them as a check."""
    read_picture(io.BytesIO(data), name)
    write_bulk(target, data)


def convert_files(
    function: Callable[..., None], files: Sequence[tuple[Path, Path]], target: Path, workers: int | None
) -> tuple[int, int]:
    """Convert the files (old, new) whose new one is not whole yet, and say how many they were.

    Args:
        function: converts one, as :func:`mat_to_png` does.
        files: the new ones are below `target`.
        target: folder.
        workers: processes; None: all cores.

    Returns:
        (files written, files that existed).
    """
    jobs = [(old, new, old) for old, new in files if not looks_whole(new)]
    remove_leftovers(target)
    for _ in run_jobs(function, jobs, len(jobs), "converting", workers):
        pass
    written, present = len(jobs), len(files) - len(jobs)
    print(f"{target}: {written} labels converted, {present} were there already")
    return written, present


def looks_whole(path: Path) -> bool:
    """Whether a PNG has its first and last bytes; nothing is decoded."""
    try:
        with open(path, "rb") as file:
            head = file.read(len(_PNG_HEAD))
            file.seek(-len(_PNG_TAIL), io.SEEK_END)
            return head == _PNG_HEAD and file.read() == _PNG_TAIL
    except OSError:
        return False


def _content(data: bytes | Path) -> bytes:
    return data.read_bytes() if isinstance(data, Path) else data


def _save(target: Path, label: np.ndarray, name: object) -> None:
    indices = label.astype(np.uint8)
    wrong = out_of_range(indices, 21)
    if wrong or (label.dtype != np.uint8 and (indices != label).any()):
        raise UseError(f"{name}: values {label.min()} to {label.max()}; VOC labels are 0 to 20, and 255")
    save_label(target, indices)
