"""Maps of probabilities in grey: single files, and grids of image, truth and prediction."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sparsemask.errors import UseError
from sparsemask.files import write_bytes
from sparsemask.pictures.predictions import VOID, Sample, draw_grid, shrunk

_OPEN = 0.5  # grey of what is ignored: stripes would not show on lines one pixel wide


def save_map(path: str | os.PathLike, values: np.ndarray) -> Path:
    """Write values (H, W) in [0, 1] as a grey PNG, 0 black and 1 white, and return the path.

    Raises:
        UseError: other values, or a suffix other than .png.
    """
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise UseError(f"{path}: maps are written as .png")
    data = io.BytesIO()
    Image.fromarray(_grey(values)).save(data, "PNG", optimize=True)
    write_bytes(path, data.getvalue())
    return path


def draw_maps(samples: Sequence[Sample], path: str | os.PathLike) -> Path:
    """Draw a grid image | truth | prediction and return the path.

    Args:
        samples: (image uint8 (H, W, 3), truth (H, W) of 0, 1 and 255 = ignored, prediction (H, W) in [0, 1]).
        path: the file to write (.png, .svg, .pdf).

    Raises:
        UseError: samples whose parts differ in size, or other values.
    """
    rows = []
    for number, sample in enumerate(samples):
        image, truth, prediction = shrunk(sample, number)
        maps = (
            _grey(values)[..., None].repeat(3, axis=2) for values in (np.where(truth == VOID, _OPEN, truth), prediction)
        )
        rows.append([image, *maps])
    void = any((sample[1] == VOID).any() for sample in samples)
    return draw_grid(rows, path, 0.3 if void else 0.05, _say_void if void else None)


def _grey(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values)
    if values.ndim != 2 or not (values.size == 0 or 0 <= values.min() <= values.max() <= 1):
        raise UseError(f"a map is an array (H, W) of 0 to 1, this one is {values.dtype} {values.shape}")
    return np.rint(values * 255).astype(np.uint8)


def _say_void(fig, share: float) -> None:
    text = "grey in the truth: not labelled, or the annotators disagree"
    fig.text(0.5, share / 2, text, ha="center", va="center", size=7.5)
