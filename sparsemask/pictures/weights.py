"""Connection weights of a search: a heat map per stage (SparseMask, Figure 4), and their history."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.pictures import style
from sparsemask.pictures.architecture import KINDS

_CELL, _TALL, _STEP = 0.44, 0.25, 0.6  # inches: a cell's width and height, and from stage to stage
_NAMED = 18  # more lines than this at the end of a history are not named one by one


def draw_weights(weights: Sequence[np.ndarray], path: str | os.PathLike, thres: float | None = None) -> Path:
    """Draw the weights of every stage as a two-row heat map and return the path.

    Args:
        weights: one array (i+1, 2) in [0, 2] per stage i, 0 the deepest; column 0 the encoder's features E_j,
            column 1 G and the earlier stages. Drawn halved, on [0, 1].
        path: the file to write (.png, .svg, .pdf).
        thres: on the halved scale; cells at or below it are crossed out. None marks nothing.

    Raises:
        UseError: other shapes.
    """
    path = style.check_path(path)
    halves = [_halved(w, i) for i, w in enumerate(weights)]
    if not halves:
        raise UseError("there are no weights to draw")
    depth = len(halves)
    left, floor = 0.62, 0.25
    right = left + 0.34 + max(depth, 5) * _CELL
    width, height = right + 0.75, floor + depth * _STEP + 0.95
    with style.drawing():
        fig, axes = style.sheet(width, height)
        from matplotlib import colormaps

        heat = colormaps[style.HEAT]
        for stage, half in enumerate(halves):
            _strip(axes, half, stage, left, floor + stage * _STEP, thres, heat)
        kept = sum(int((half > (thres or 0)).sum()) for half in halves)
        total = depth * (depth + 1)
        note = "weight / 2 of every possible input"
        if thres is not None:
            note = f"weight / 2; {kept} of {total} above {thres:g}, the rest crossed out"
        axes.text(0.2, height - 0.16, "Connection weights", va="top", size=style.TITLE, weight="bold")
        axes.text(0.2, height - 0.38, note, va="top", size=style.SMALL, color=style.GREY)
        _columns(axes, depth, left, floor + depth * _STEP - 0.02)
        bar = style.place(fig, right + 0.12, floor, 0.13, max(depth * _STEP - 0.1, 0.8))
        _colour_bar(fig, bar, heat)
        return style.save(fig, path)


def _halved(weights: np.ndarray, stage: int) -> np.ndarray:
    weights = np.asarray(weights, dtype=float)
    if weights.shape != (stage + 1, 2):
        raise UseError(f"weights of stage {stage} have shape {weights.shape}, expected ({stage + 1}, 2)")
    return np.clip(np.abs(weights), 0, 2) / 2


def _strip(axes, half: np.ndarray, stage: int, left: float, bottom: float, thres: float | None, heat) -> None:
    """One stage: the encoder's row above the decoder's, columns as in the header."""
    from matplotlib.patches import Rectangle

    axes.text(left - 0.12, bottom + _TALL, f"$D_{{{stage}}}$", ha="right", va="center", size=10)
    for column, name in ((0, "E"), (1, "D")):
        y = bottom + (1 - column) * _TALL
        kind = "encoder" if column == 0 else "decoder"
        axes.text(left + 0.27, y + _TALL / 2, name, ha="right", va="center", size=7, color=KINDS[kind])
        for j, value in enumerate(half[:, column]):
            x, dropped = left + 0.34 + j * _CELL, thres is not None and not value > thres
            axes.add_patch(
                Rectangle((x, y), _CELL, _TALL, fc=heat(value) if not dropped else style.PAPER, ec=style.PALE)
            )
            middle = (x + _CELL / 2, y + _TALL / 2)
            if dropped:
                axes.text(*middle, "×", ha="center", va="center", size=7, color="#B5B5B5")
            elif np.isfinite(value):
                ink = style.PAPER if value > 0.55 else style.INK
                axes.text(*middle, f"{value:.2f}", ha="center", va="center", size=6.5, color=ink)


def _columns(axes, depth: int, left: float, bottom: float) -> None:
    """Above the blocks: which input each column is, in the encoder's row and in the decoder's."""
    for row, kind in ((0.17, "encoder"), (0.0, "decoder")):
        for j in range(depth):
            source = f"E_{{{j}}}" if kind == "encoder" else f"D_{{{j - 1}}}" if j else "G"
            colour = KINDS["global"] if source == "G" else KINDS[kind]
            x = left + 0.34 + (j + 0.5) * _CELL
            axes.text(x, bottom + row, f"${source}$", ha="center", va="bottom", size=7.5, color=colour)


def _colour_bar(fig, axes, heat) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = fig.colorbar(ScalarMappable(Normalize(0, 1), heat), cax=axes)
    bar.outline.set_edgecolor(style.PALE)
    bar.set_ticks([0, 0.25, 0.5, 0.75, 1])


def connection_names(count: int) -> list[tuple[str, str]]:
    """(kind, label) of each of `count` = L(L+1) weights, stage after stage, each (i+1, 2) row by row."""
    depth = int(count**0.5)
    if count != depth * (depth + 1) or not count:
        raise UseError(f"{count} weights are not the L(L+1) connections of any depth L")
    names = []
    for i in range(depth):
        for j in range(i + 1):
            names.append(("encoder", f"$E_{{{j}}}→D_{{{i}}}$"))
            source = f"D_{{{j - 1}}}" if j else "G"
            names.append(("decoder" if j else "global", f"${source}→D_{{{i}}}$"))
    return names


def draw_weight_history(
    history: tuple[Sequence[int], np.ndarray],
    path: str | os.PathLike,
    thres: float = 0.001,
    log: bool = False,
) -> Path:
    """Draw each connection's weight over the steps, and how many stand above the threshold; return the path.

    Args:
        history: steps (T,) and raw weights (T, L(L+1)) in [0, 2]: the stages' (i+1, 2) arrays flattened and
            joined, stage 0 first.
        path: the file to write (.png, .svg, .pdf).
        thres: on the halved scale.
        log: logarithmic weight axis, which shows how far below the threshold the dropped ones lie.

    Raises:
        UseError: other shapes.
    """
    path = style.check_path(path)
    steps, values = np.asarray(history[0], dtype=float), np.asarray(history[1], dtype=float)
    if values.ndim != 2 or steps.shape != values.shape[:1] or not len(steps):
        raise UseError(f"a weight history needs (T,) steps and (T, n) weights: got {steps.shape}, {values.shape}")
    names = connection_names(values.shape[1])
    halves = np.clip(np.abs(values), 0, 2) / 2
    with style.drawing():
        fig = style.figure(7.4, 5.2)
        top, low = style.place(fig, 0.62, 1.9, 5.75, 2.75), style.place(fig, 0.62, 0.55, 5.75, 0.95)
        _lines(top, steps, halves, names, thres, log)
        _count(low, steps, (halves > thres).sum(axis=1), values.shape[1])
        return style.save(fig, path)


def _lines(axes, steps, halves, names, thres: float, log: bool) -> None:
    from matplotlib.lines import Line2D

    floor = min(thres / 100, 1e-5) if log else 0.0
    kept = halves[-1] > thres
    for index in sorted(range(len(names)), key=lambda k: kept[k]):
        width, alpha = (1.4, 0.95) if kept[index] else (0.7, 0.35)
        values = np.maximum(halves[:, index], floor)
        axes.plot(steps, values, color=KINDS[names[index][0]], lw=width, alpha=alpha, zorder=2 + kept[index])
    axes.axhline(thres, color=style.INK, lw=0.8, ls=(0, (4, 3)), zorder=5)
    axes.set_title(f"Weight / 2 of each connection; threshold {thres:g} dashed", size=style.TITLE, pad=24)
    axes.set(
        xlim=_span(steps),
        yscale="log" if log else "linear",
        ylim=(floor if log else -0.03, 1.6 if log else 1.03),
    )
    axes.grid(axis="y")
    axes.tick_params(labelbottom=False)
    colours = {"from " + kind + " average" * (kind == "global"): colour for kind, colour in KINDS.items()}
    axes.legend(
        handles=[Line2D([], [], color=colour, lw=2, label=label) for label, colour in colours.items()]
        + [Line2D([], [], color=style.GREY, lw=0.7, alpha=0.6, label="dropped at the end (thin)")],
        loc="lower left", bbox_to_anchor=(-0.01, 0.99), ncols=4,
        handlelength=1.4, columnspacing=1.2, borderpad=0.2,
    )  # fmt: skip
    if 0 < kept.sum() <= _NAMED:
        _name_ends(axes, np.flatnonzero(kept), halves[-1], names)


def _name_ends(axes, kept: np.ndarray, last: np.ndarray, names) -> None:
    """Names of the surviving connections at the right edge, kept apart, each tied to its line's end."""
    to_axes = axes.transData + axes.transAxes.inverted()
    right = axes.get_xlim()[1]
    ends = [float(to_axes.transform((right, last[k]))[1]) for k in kept]
    for k, end, at in zip(kept, ends, style.spread(ends, 0.05, 0.0, 1.02), strict=True):
        kind, label = names[k]
        line = dict(transform=axes.transAxes, clip_on=False, color=KINDS[kind], lw=0.5)
        axes.plot([1.0, 1.03], [end, at], **line)
        axes.text(1.037, at, label, transform=axes.transAxes, va="center", size=7, color=KINDS[kind])


def _count(axes, steps, counts, total: int) -> None:
    axes.plot(steps, counts, color=style.INK, lw=1.4, drawstyle="steps-post")
    axes.set_title(f"Connections above the threshold: {counts[-1]} of {total} at the end")
    axes.set(xlim=_span(steps), ylim=(0, total * 1.05), xlabel="step")
    axes.grid(axis="y")


def _span(steps: np.ndarray) -> tuple[float, float]:
    low, high = float(steps.min()), float(steps.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)
