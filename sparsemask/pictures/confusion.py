"""The confusion matrix of a validation, row by row in per cent."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.pictures import style


def draw_confusion(matrix: np.ndarray, class_names: Sequence[str], path: str | os.PathLike) -> Path:
    """Draw a confusion matrix with each row scaled to 1.

    A class without pixels has a grey row. Numbers are per cent of the row; values that round to 0 are left out.

    Args:
        matrix: counts (C, C), rows truth, columns prediction.
        class_names: name of each class.
        path: the file to write (.png, .svg, .pdf).

    Returns:
        The path.

    Raises:
        UseError: the matrix is not square or does not fit the names.
    """
    path = style.check_path(path)
    matrix = np.asarray(matrix, dtype=float)
    count = len(class_names)
    if matrix.shape != (count, count) or not count:
        raise UseError(f"a confusion matrix of shape {matrix.shape} does not fit {count} class names")
    totals = matrix.sum(axis=1, keepdims=True)
    shares = np.divide(matrix, totals, out=np.full_like(matrix, np.nan), where=totals > 0)
    longest = max(map(len, class_names))
    cell = 0.3 if count <= 30 else 0.16
    left, floor = 0.45 + 0.075 * longest, 0.4 + 0.06 * longest
    side = max(count * cell, 1.6)
    width, height = left + max(side + 0.75, 3.0), floor + side + 0.5
    with style.drawing():
        from matplotlib import colormaps

        heat = colormaps[style.HEAT].with_extremes(bad=style.PALE)
        fig = style.figure(width, height)
        axes = style.place(fig, left, floor, side, side)
        image = axes.imshow(np.ma.masked_invalid(shares), cmap=heat, vmin=0, vmax=1, aspect="auto")
        slant, upright = (45, "top") if count <= 30 else (90, "center")
        axes.set_xticks(range(count), class_names, rotation=slant, ha="right", va=upright, rotation_mode="anchor")
        axes.set_yticks(range(count), class_names)
        axes.tick_params(length=0, pad=3)
        axes.spines[:].set(visible=True, color=style.PALE)
        axes.set(xlabel="prediction", ylabel="truth")
        axes.set_title("Confusion, % of each true class", size=style.TITLE, pad=8, x=0)
        if count <= 30:
            for truth, guess in np.argwhere(np.nan_to_num(shares) >= 0.005).tolist():
                share = shares[truth, guess]
                ink = style.PAPER if share > 0.55 else style.INK
                axes.text(guess, truth, f"{share * 100:.0f}", ha="center", va="center", size=6.5, color=ink)
        bar = fig.colorbar(image, cax=style.place(fig, left + side + 0.12, floor, 0.13, side))
        bar.outline.set_edgecolor(style.PALE)
        bar.set_ticks([0, 0.5, 1], labels=["0", "50", "100"])
        return style.save(fig, path)
