"""Zeros after every ReLU: a row of channels for each layer, from the one with fewest to the one with most."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.pictures import style

_ROW, _WIDE, _BAR, _GAP, _TOP, _BELOW = 0.2, 4.2, 1.5, 0.4, 0.62, 0.55  # inches
_MOST = 60  # rows; more are drawn thinner


def draw_zeros(
    names: Sequence[str], shares: Sequence[np.ndarray], path: str | os.PathLike, title: str | None = None
) -> Path:
    """Draw the shares of zeros and return the path.

    Args:
        names: of the layers, in the order of computation.
        shares: (C,) of each layer, the share of zeros of each channel in [0, 1].
        path: the file to write (.png, .svg, .pdf).
        title: a headline.

    Raises:
        UseError: no layers.
    """
    path = style.check_path(path)
    if not len(names):
        raise UseError(f"{path}: no layers to draw")
    row = _ROW if len(names) <= _MOST else _ROW * _MOST / len(names)
    left = 0.25 + 0.068 * max(map(len, names))
    width, height = left + _WIDE + _GAP + _BAR + 0.25, _TOP + len(names) * row + _BELOW
    with style.drawing():
        fig = style.figure(width, height)
        tall = len(names) * row
        axes = style.place(fig, left, _BELOW, _WIDE, tall)
        rows = np.stack([_stretched(np.sort(np.asarray(zeros, float))) for zeros in shares])
        edges = np.arange(len(names) + 1) - 0.5
        mesh = axes.pcolormesh(np.linspace(0, 1, rows.shape[1] + 1), edges, rows, cmap=style.HEAT, vmin=0, vmax=1)
        axes.set(ylim=(len(names) - 0.5, -0.5), xlim=(0, 1), xlabel="channels, sorted (share of the layer's)")
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(axis="y", length=0)
        axes.hlines(edges[1:-1], 0, 1, color=style.PAPER, lw=1.5 if row > 0.12 else 0.3)
        bars = style.place(fig, left + _WIDE + _GAP, _BELOW, _BAR, tall)
        means = [float(np.mean(zeros)) for zeros in shares]
        bars.barh(range(len(names)), means, height=0.62, color=style.BLUE)
        bars.set(ylim=(len(names) - 0.5, -0.5), xlim=(0, 1), xlabel="mean share of zeros", yticks=[])
        bars.set_xticks([0, 0.5, 1])
        bars.grid(axis="x")
        bars.set_axisbelow(True)
        legend = style.place(fig, left + _WIDE - 1.3, height - 0.32, 1.3, 0.1)
        fig.colorbar(mesh, cax=legend, orientation="horizontal", ticks=[0, 0.5, 1])
        legend.tick_params(length=0, pad=1)
        fig.text((left + _WIDE - 1.38) / width, 1 - 0.27 / height, "zeros", ha="right", va="center", size=style.SMALL)
        if title:
            fig.text(0.12 / width, 1 - 0.14 / height, title, va="top", size=style.TITLE, weight="bold")
        return style.save(fig, path)


def _stretched(values: np.ndarray, columns: int = 240) -> np.ndarray:
    """The values as that many columns, each as wide as the others."""
    return values[(np.arange(columns) * len(values)) // columns]
