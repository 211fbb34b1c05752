"""Draw the embedded sample set: a few hundred images of 20 object classes, the same every time.

`VOC12/sample.py` is the command. It writes OUT/img/*.jpg, OUT/gt/*.png (class indices, 255 = ignore),
OUT/class_names.txt, the lists OUT/{train,val,trainval,train_aug}.txt and, last, OUT/STAMP.json: the layout of prepared
VOC, for which it stands in. `scenes.py` says what its classes ask of a network. What is there is not drawn again.
"""

from __future__ import annotations

import io
import os
import re
from pathlib import Path

import numpy as np
from PIL import Image

from sparsemask.files import write_text
from sparsemask.synthetic.folders import StampedFolder
from sparsemask.synthetic.objects import CLASS_NAMES
from sparsemask.synthetic.scenes import draw_scene
from sparsemask.VOC12.bulk import remove_leftovers, write_bulk
from sparsemask.VOC12.palette import save_label
from sparsemask.VOC12.workers import run_jobs

VERSION = 1  # of the drawings: raise it when any pixel changes, so that old folders are drawn anew
_LIMITS = {"train": (1, 9000), "val": (1, 900), "size": (48, 1024), "seed": (0, 2**32 - 1)}


def make_sample(
    out: str | os.PathLike, train: int = 240, val: int = 60, size: int = 128, seed: int = 0, workers: int | None = 1
) -> dict[str, int]:
    """Draw the sample set into `out`; returns at once when it is there, completes it when it is half made.

    Args:
        out: folder, absent, empty or of a former call; with other settings the former set is replaced.
        train: number of training images; train_aug is the same list.
        val: number of validation images.
        size: side of the square images, in pixels; the drawing scales with it.
        seed: the same seed gives the same pixels.
        workers: processes, None for all cores.

    Returns:
        the stamp: version, train, val, size and seed.

    Raises:
        UseError: impossible settings, or `out` holds something that is not a sample set.
    """
    out = Path(out)
    settings = {"version": VERSION, "train": train, "val": val, "size": size, "seed": seed}
    stamp = StampedFolder(out, "sample set", settings, _LIMITS)
    names = [f"{number:04d}" for number in range(train + val)]
    if stamp.stamped and not _absent(out, names):
        return settings
    stamp.begin(lambda: _remove(out))
    remove_leftovers(out / "img", out / "gt")
    jobs = [(str(out), name, seed, size) for name in _absent(out, names)]
    for _ in run_jobs(_draw, jobs, len(jobs), "drawing the sample set", workers):
        pass
    lists = {"train": names[:train], "val": names[train:], "trainval": names, "train_aug": names[:train]}
    for name, entries in (*lists.items(), ("class_names", CLASS_NAMES)):
        write_text(out / f"{name}.txt", "\n".join(entries) + "\n")
    stamp.finish()
    return settings


def _draw(out: str, name: str, seed: int, size: int) -> None:
    """Draw one image and its label; the label is written last and marks both as complete."""
    image, label = draw_scene(seed, int(name), size)
    write_bulk(Path(out, "img", f"{name}.jpg"), encode_picture(image))
    save_label(Path(out, "gt", f"{name}.png"), label)


def encode_picture(image: np.ndarray) -> bytes:
    """JPEG of an RGB image, without chroma subsampling, which would blur thin strokes."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, format="JPEG", quality=92, subsampling=0)
    return file.getvalue()


def _absent(out: Path, names: list[str]) -> list[str]:
    """Names of which the image or the label is not in `out`."""
    present = [set(os.listdir(out / folder)) if (out / folder).is_dir() else set() for folder in ("img", "gt")]
    return [name for name in names if f"{name}.jpg" not in present[0] or f"{name}.png" not in present[1]]


def _remove(out: Path) -> None:
    """Remove images and labels that were drawn here; others are the user's."""
    for folder, suffix in (("img", "jpg"), ("gt", "png")):
        for path in (out / folder).glob(f"*.{suffix}"):
            if re.fullmatch(r"\d{4}", path.stem):
                path.unlink()
