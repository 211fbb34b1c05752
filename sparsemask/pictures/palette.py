"""Colours of classes: VOC's for VOC, the data set's own where they are told apart, else chosen for contrast."""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from sparsemask.pictures import style
from sparsemask.VOC12.images import decoding
from sparsemask.VOC12.palette import VOC_CLASSES, VOC_COLOURS

# Okabe and Ito's colours, told apart with every common form of colour blindness; more are chosen far from these.
_FIRST = ((0, 114, 178), (213, 94, 0), (0, 158, 115), (240, 228, 66), (204, 121, 167), (86, 180, 233), (230, 159, 0))
_BACKGROUND = (0, 0, 0)
_BACKGROUNDS = {"background", "unlabelled", "unlabeled", "other", "others", "none", "void"}
_VOID = (224, 224, 192)  # pixels without a label are shown so
_APART = 20.0  # CIE 1976 distance of the nearest two colours; VOC's greens of classes 2 and 10 are 12 apart
_LIGHT = 32, 92  # lightness of chosen colours, 0 to 100: not near the background's black, nor the page's white
_LEVELS = 12  # of each channel among the candidates
_ROWS, _LINE, _LONG = 16, 0.26, 28  # of the drawing: lines a column, inches a line, letters of a name


def class_palette(classes: Sequence[str], own: np.ndarray | None = None) -> np.ndarray:
    """Colours in which classes are shown.

    Args:
        classes: their names, 1 to 255.
        own: colours (N, 3) in 0..255 of the data set's label files, if they have any.

    Returns:
        uint8 (number of classes, 3): VOC's for VOC's classes, else `own` where no two of them are alike, else colours
        chosen for contrast.
    """
    count = len(classes)
    if tuple(map(str, classes)) == tuple(VOC_CLASSES):
        return VOC_COLOURS[:count].copy()
    if own is not None and len(own) >= count and least_distance(own[:count]) >= _APART:
        return np.asarray(own[:count], np.uint8)
    dark = bool(classes) and str(classes[0]).strip().lower() in _BACKGROUNDS
    return contrasting(count, dark)


def least_distance(colours: np.ndarray) -> float:
    """CIE 1976 distance of the nearest two of some colours (N, 3); infinite for fewer than two."""
    lab = _lab(np.asarray(colours))
    gaps = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    return float(gaps[~np.eye(len(lab), dtype=bool)].min(initial=np.inf))


@functools.lru_cache(maxsize=16)
def _chosen(count: int, dark: bool) -> tuple[tuple[int, int, int], ...]:
    steps = np.linspace(0, 255, _LEVELS).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lab = _lab(candidates)
    seen = (lab[:, 0] >= _LIGHT[0]) & (lab[:, 0] <= _LIGHT[1])
    candidates, lab = candidates[seen], lab[seen]
    chosen = [_BACKGROUND, *_FIRST] if dark else list(_FIRST)
    taken = _lab(np.array([*chosen, _VOID, _BACKGROUND, (255, 255, 255)]))
    nearest = np.linalg.norm(lab[:, None] - taken[None], axis=2).min(axis=1)
    while len(chosen) < count:
        farthest = int(nearest.argmax())
        red, green, blue = map(int, candidates[farthest])
        chosen.append((red, green, blue))
        nearest = np.minimum(nearest, np.linalg.norm(lab - lab[farthest], axis=1))
    return tuple(chosen[:count])


def contrasting(count: int, dark: bool = True) -> np.ndarray:
    """Colours uint8 (count, 3), each far from all before it; the same every time.

    Args:
        count: 0 to 255.
        dark: the first one is black, as a background's is.
    """
    return np.array(_chosen(count, dark), np.uint8).reshape(count, 3)


def file_palette(path: str | os.PathLike[str]) -> np.ndarray | None:
    """The palette (N, 3) uint8 of a label file; None where it has none.

    Raises:
        UseError: no readable image.
    """
    with decoding(path), Image.open(path) as image:
        values = image.getpalette() if image.mode == "P" else None
    return None if not values else np.array(values, np.uint8).reshape(-1, 3)


def _lab(colours: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (N, 3) of colours 0..255."""
    from skimage.color import rgb2lab

    lab: np.ndarray = np.asarray(rgb2lab(colours.reshape(1, -1, 3) / 255.0))
    return lab.reshape(-1, 3)


def draw_palette(classes: Sequence[str], palette: np.ndarray, path: str | os.PathLike[str]) -> Path:
    """Draw the classes' numbers, colours and names in columns; return the path.

    Args:
        classes: names.
        palette: colours (N, 3), 0 to 255, one for each class at least.
        path: the file to write (.png, .svg, .pdf).
    """
    from matplotlib.patches import Rectangle

    path = style.check_path(path)
    names = [name if len(name) <= _LONG else f"{name[: _LONG - 1]}…" for name in classes]
    down = min(len(names), _ROWS)
    across = -(-len(names) // down)
    wide = 0.75 + 0.075 * max(map(len, names))
    with style.drawing():
        fig, axes = style.sheet(across * wide + 0.2, down * _LINE + 0.2)
        for k, name in enumerate(names):
            x, y = 0.1 + wide * (k // down), 0.1 + _LINE * (down - 1 - k % down)
            axes.text(x + 0.24, y + 0.1, str(k), ha="right", va="center", color=style.GREY, size=style.SMALL)
            swatch = Rectangle((x + 0.3, y), 0.3, 0.19, fc=np.asarray(palette[k]) / 255, ec=style.GREY, lw=0.5)
            axes.add_patch(swatch)
            axes.text(x + 0.66, y + 0.1, name, va="center")
        return style.save(fig, path)
