"""Precision over recall, with lines of equal F."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from sparsemask.pictures import style


def draw_precision_recall(
    precision: np.ndarray,
    recall: np.ndarray,
    path: str | os.PathLike,
    f: Callable[[np.ndarray, np.ndarray], np.ndarray],
    best: tuple[float, float, str],
) -> Path:
    """Draw a curve over its thresholds and return the path.

    Args:
        precision: (T,) in [0, 1], in the order of the thresholds.
        recall: (T,) likewise.
        path: the file to write (.png, .svg, .pdf).
        f: F of precision and recall, whose lines 0.1, 0.2 … 0.9 are drawn light.
        best: recall, precision and name of the point to mark.
    """
    path = style.check_path(path)
    defined = np.asarray(precision) + recall > 0  # where nothing is predicted there is no point to draw
    with style.drawing():
        fig = style.figure(3.6, 3.5)
        axes = style.place(fig, 0.5, 0.45, 2.85, 2.85)
        grid = np.linspace(0.001, 1, 200)
        across, up = np.meshgrid(grid, grid)
        lines = axes.contour(across, up, f(up, across), np.arange(1, 10) / 10, colors=style.PALE, linewidths=0.7)
        axes.clabel(lines, fmt="%.1f", fontsize=6, colors=style.GREY)
        axes.plot(recall[defined], precision[defined], color=style.BLUE, lw=1.5, marker="o", ms=1.8)
        side = -1 if best[0] > 0.5 else 1  # the name stands where the curve is not: inside of a bend, else outside
        axes.plot(*best[:2], "o", color=style.ORANGE, ms=5, mec=style.PAPER, mew=0.6, zorder=4)
        annotation = dict(ha="right", va="top") if side < 0 else dict(ha="left", va="bottom")
        annotation |= dict(xytext=(7 * side, 7 * side), textcoords="offset points", color=style.ORANGE, weight="bold")
        axes.annotate(best[2], best[:2], **annotation)
        axes.set(xlim=(0, 1), ylim=(0, 1.0), xlabel="recall", ylabel="precision")
        return style.save(fig, path)
