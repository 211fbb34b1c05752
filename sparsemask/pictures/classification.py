"""Classified images with their likeliest classes, and the accuracy of each class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.pictures import style

_SIDE, _GAP, _COLUMNS = 1.0, 0.14, 6  # inches
_CAPTION = 0.5
_LONGEST = 256  # pixels; larger samples are drawn smaller

Sample = tuple[np.ndarray, str, Sequence[tuple[str, float]]]


def draw_predictions(samples: Sequence[Sample], path: str | os.PathLike) -> Path:
    """Draw images in a grid with predicted and true class; wrong ones framed; return the path.

    Args:
        samples: (image uint8 (H, W, 3), truth, [(class, probability), ...] likeliest first).
        path: the file to write (.png, .svg, .pdf).

    Raises:
        UseError: no samples.
    """
    path = style.check_path(path)
    if not samples:
        raise UseError(f"{path}: no samples to draw")
    columns = min(_COLUMNS, len(samples))
    rows = -(-len(samples) // columns)
    width, row = columns * (_SIDE + _GAP) + _GAP, _SIDE + _CAPTION
    height = rows * row + _GAP
    with style.drawing():
        fig = style.figure(width, height)
        for number, (image, truth, best) in enumerate(samples):
            left = _GAP + number % columns * (_SIDE + _GAP)
            bottom = height - _GAP - number // columns * row - _SIDE
            axes = style.place(fig, left, bottom, _SIDE, _SIDE)
            step = -(-max(image.shape[:2]) // _LONGEST)
            axes.imshow(image[::step, ::step], interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            (guess, share), right = best[0], best[0][0] == truth
            ink = style.INK if right else style.ORANGE
            axes.spines[:].set(visible=True, color=style.PALE if right else style.ORANGE, lw=0.6 if right else 2.0)
            size, at = style.SMALL - 0.5, (left + _SIDE / 2) / width
            fig.text(at, (bottom - 0.13) / height, f"{_short(guess, 11)} {share:.0%}", ha="center", va="center",
                     size=size, color=ink, weight="normal" if right else "bold")  # fmt: skip
            if not right:
                fig.text(at, (bottom - 0.27) / height, f"is {_short(truth, 13)}", ha="center", va="center", size=size,
                         color=style.GREY)  # fmt: skip
        return style.save(fig, path)


def draw_accuracy(classes: Sequence[str], recall: np.ndarray, overall: float, path: str | os.PathLike) -> Path:
    """Draw the accuracy of each class, the best on top, and the overall one as a line; return the path.

    Args:
        classes: their names; beyond 50 they are not written.
        recall: (C,) shares in [0, 1]; NaN for classes without images, which are left out.
        overall: of all images, in [0, 1].
        path: the file to write (.png, .svg, .pdf).

    Raises:
        UseError: no class has images.
    """
    path = style.check_path(path)
    recall = np.asarray(recall, float)
    measured = np.flatnonzero(np.isfinite(recall))
    if not len(measured):
        raise UseError(f"{path}: no class has pictures")
    order = measured[np.argsort(recall[measured], kind="stable")]
    few = len(order) <= 50
    step = 0.22 if few else 8.0 / len(order)
    height = 0.95 + len(order) * step
    at = np.arange(len(order))
    with style.drawing():
        fig = style.figure(6.0, height)
        axes = style.place(fig, 1.35 if few else 0.4, 0.5, 4.15 if few else 5.2, height - 0.85)
        axes.barh(at, recall[order], height=0.72 if few else 1.0, color=style.BLUE)
        axes.axvline(overall, color=style.ORANGE, lw=1.2)
        axes.annotate(f"all: {overall:.1%}", (overall, 1), xytext=(0, 3), xycoords=("data", "axes fraction"),
                      textcoords="offset points", color=style.ORANGE, size=style.SMALL, ha="center")  # fmt: skip
        if few:
            for y, share in zip(at, recall[order], strict=True):
                inside = share > 0.12
                axes.text(share + (-0.01 if inside else 0.01), y, f"{share:.1%}", va="center", size=6.5,
                          ha="right" if inside else "left", color=style.PAPER if inside else style.INK)  # fmt: skip
        axes.set_yticks(at if few else [], [_short(classes[k], 20) for k in order] if few else [])
        axes.tick_params(axis="y", length=0)
        axes.set(xlim=(0, 1), ylim=(-0.7, len(order) - 0.3), xlabel="accuracy")
        axes.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
        return style.save(fig, path)


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"
