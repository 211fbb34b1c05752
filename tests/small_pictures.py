"""Pictures and folders for super-resolution, small enough for tests of seconds, and the task's options on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from small_config import configured
from sparsemask.config import RunConfig
from sparsemask.resize import imresize
from sparsemask.tasks.super_resolution.options import SuperResolutionData


def scene(seed: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """Blobs of colour with edges and noise, uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(size)
    picture = np.zeros((*size, 3))
    for _ in range(6):
        y, x, r = rng.uniform(0, size[0]), rng.uniform(0, size[1]), rng.uniform(4, 16)
        picture[(rows - y) ** 2 + (columns - x) ** 2 < r * r] = rng.uniform(0, 255, 3)
    return np.clip(picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)


def write(path: Path, picture: np.ndarray) -> Path:
    """Write a picture, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)
    return path


def make_folder(folder: Path, n: int = 3, size: tuple[int, int] = (48, 64), first: int = 1) -> Path:
    """High-resolution pictures 0001.png, 0002.png, ..."""
    for k in range(first, first + n):
        write(folder / f"{k:04d}.png", scene(k, size))
    return folder


def make_pairs(
    hr: Path, lr: Path, n: int = 3, size: tuple[int, int] = (48, 64), scale: int = 2, suffix: str = "", first: int = 1
) -> None:
    """Such pictures, and the low-resolution ones in another folder, with `suffix` to their names."""
    make_folder(hr, n, size, first)
    for path in sorted(hr.iterdir()):
        picture = np.array(Image.open(path))
        picture = picture[: size[0] // scale * scale, : size[1] // scale * scale]
        write(lr / f"{path.stem}{suffix}.png", imresize(picture, 1 / scale))


def options(**given) -> RunConfig:
    """The task's configuration, a small patch and batch."""
    more = {"task": "super_resolution", "n_worker": 0, "batch_size": 2, "patch_size": 12}
    return configured(SuperResolutionData, **{**more, **given})
