"""Drawings of group sparsity: groups kept by each layer, spectra of group norms, accuracy over cost.

Spectra: after the initialisation "svd2" the norms of a matrix's rows are the singular values of its convolution (Li et
al., "Group sparsity: the hinge between filter pruning and decomposition for network compression", CVPR 2020, section
3), so that the curves before the search show how far each layer could be decomposed as it was.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.pictures import style

_PANELS = 48  # spectra drawn at most: of more sets, evenly chosen ones
_ACROSS = 6
_NAMED = 60  # layers whose names fit
_FLOOR = 1e-4  # of the largest norm, where the scale ends at the latest: what is smaller is drawn there
# What a set's name ends in: rows of a matrix (decomposition), its columns (filter pruning), groups of convolutions.
_KINDS = {"rows": style.ORANGE, "columns": style.BLUE, "groups": style.GREEN}


def draw_kept(kept: Mapping[str, tuple[int, int]], path: str | os.PathLike, title: str = "Groups kept") -> Path:
    """Draw the share of its groups that each set keeps, a bar each in the network's order; return the path.

    Args:
        kept: (kept, all) groups by the set's name, such as "features.1.0.body.0.rows", whose ending says the colour.
        path: the file to write (.png, .svg, .pdf).
        title: above the bars.

    Raises:
        UseError: no sets, or numbers that are no part of a whole.
    """
    path = style.check_path(path)
    if not kept:
        raise UseError(f"{path}: no sets of groups to draw")
    wrong = next((name for name, (part, total) in kept.items() if not 0 <= part <= total or not total), None)
    if wrong is not None:
        raise UseError(f"{wrong}: {kept[wrong][0]} groups of {kept[wrong][1]} cannot be")
    names, (parts, wholes) = list(kept), np.array(list(kept.values()), float).T
    count, show_names = len(names), len(names) <= _NAMED
    step = 0.19 if show_names else max(9.0 / count, 0.04)
    left = 0.35 + 0.062 * max(map(len, map(_short, names))) if show_names else 0.6
    height = 0.95 + count * step
    at = np.arange(count)[::-1]
    with style.drawing():
        fig = style.figure(left + 4.6, height)
        axes = style.place(fig, left, 0.48, 4.0, height - 0.85)
        axes.barh(at, np.ones(count), height=0.8, color="#EFEFEF")
        axes.barh(at, parts / wholes, height=0.8, color=[_KINDS.get(_kind(name), style.BLUE) for name in names])
        if show_names:
            for y, part, total in zip(at, parts, wholes, strict=True):
                axes.text(1.01, y, f"{part:.0f} / {total:.0f}", va="center", size=6, color=style.GREY)
            axes.set_yticks(at, [_short(name) for name in names], size=6.5)
        else:
            axes.set_yticks([])
            axes.set_ylabel(f"{count} sets, from the input down")
        axes.tick_params(axis="y", length=0)
        axes.set(xlim=(0, 1), ylim=(-0.7, count - 0.3), xlabel="share of the groups that is kept")
        axes.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
        axes.set_title(f"{title}: {parts.sum():.0f} of {wholes.sum():.0f}", x=0)
        _kinds(axes, names)
        return style.save(fig, path)


def draw_spectra(
    before: Mapping[str, Sequence[float]],
    after: Mapping[str, Sequence[float]],
    path: str | os.PathLike,
    threshold: float | None = None,
) -> Path:
    """Draw the norms of each set's groups, largest first, before and after the search; return the path.

    Norms are over the largest of the set's before, on a scale of powers of ten, down to 1e-4 at most: zeros lie on its
    floor. From the threshold down is what is removed.

    Args:
        before: norms (count,) before the search, by the set's name; sets may be absent.
        after: norms (count,) after the search, by the set's name.
        path: the file to write (.png, .svg, .pdf).
        threshold: in the norms' unit, a dotted line.

    Raises:
        UseError: no sets, or norms that are negative or not finite.
    """
    path = style.check_path(path)
    if not after:
        raise UseError(f"{path}: no sets of groups to draw")
    before = {name: _norms(name, values) for name, values in before.items()}
    after = {name: _norms(name, values) for name, values in after.items()}
    names = list(after)
    chosen = [names[k] for k in np.unique(np.linspace(0, len(names) - 1, min(_PANELS, len(names))).round().astype(int))]
    columns = min(_ACROSS, len(chosen))
    rows = -(-len(chosen) // columns)
    wide, high, top = 1.3, 0.95, 0.5
    width, height = max(columns * (wide + 0.2) + 0.6, 4.2), top + rows * (high + 0.42) + 0.3
    floor = _floor([(before.get(name), after[name]) for name in chosen], threshold)
    with style.drawing():
        fig = style.figure(width, height)
        for number, name in enumerate(chosen):
            left = 0.5 + number % columns * (wide + 0.2)
            bottom = height - top - 0.05 - number // columns * (high + 0.42) - high
            axes = style.place(fig, left, bottom, wide, high)
            _spectrum(axes, before.get(name), after[name], threshold, floor)
            axes.set_title(_short(name, 25), size=6, weight="normal", pad=2)
            if number % columns:
                axes.set_yticklabels([])
        _legend(fig, height, before, threshold)
        left_out = f", {len(chosen)} of {len(names)} sets" if len(chosen) < len(names) else ""
        fig.text(0.5, 0.12 / height, f"groups, largest first{left_out}", ha="center", va="center", size=style.SMALL)
        return style.save(fig, path)


@dataclass(frozen=True)
class Tried:
    """A network of an accuracy-cost curve: its cost (a share, or in a unit), its accuracy in [0, 1], what it is."""

    cost: float
    accuracy: float
    label: str = ""
    kind: str = "compressed"


def draw_tradeoff(points: Sequence[Tried], path: str | os.PathLike, cost: str = "multiply-adds") -> Path:
    """Draw accuracy over cost, a line through the points of each kind; return the path.

    Args:
        points: networks; those of kind "baseline" are drawn as a star with a level line.
        path: the file to write (.png, .svg, .pdf).
        cost: name of the cost, for the axis; costs up to 1 are read as shares of the baseline's.

    Raises:
        UseError: no points, or values that are not finite.
    """
    path = style.check_path(path)
    if not points:
        raise UseError(f"{path}: nothing to draw")
    for point in points:
        if not (np.isfinite(point.cost) and np.isfinite(point.accuracy) and point.cost >= 0):
            raise UseError(
                f"{point.label or point.kind}: cost {point.cost} and accuracy {point.accuracy} cannot be drawn"
            )
    kinds = dict.fromkeys(point.kind for point in points)
    shares = max(point.cost for point in points) <= 1.2
    with style.drawing():
        fig = style.figure(6.0, 3.9)
        axes = style.place(fig, 0.7, 0.55, 4.95, 3.0)
        colours = iter((style.BLUE, style.ORANGE, style.GREEN, style.PURPLE, style.SKY) * len(kinds))
        for kind in kinds:
            mine = sorted((p for p in points if p.kind == kind), key=lambda p: p.cost)
            x, y = [p.cost for p in mine], [p.accuracy for p in mine]
            if kind == "baseline":
                axes.axhline(max(y), color=style.GREY, lw=0.8, ls=":", zorder=1)
                axes.plot(x, y, "*", ms=11, color=style.INK, label=kind, zorder=4)
            else:
                axes.plot(x, y, "o-", ms=5, lw=1.3, color=next(colours), label=kind, zorder=3)
        _labels(axes, points)
        axes.set(xlabel=f"{cost}, share of the baseline's" if shares else cost, ylabel="top-1 accuracy")
        axes.margins(x=0.12, y=0.2)
        if shares:
            axes.set_xlim(0, max(1.08, axes.get_xlim()[1]))
            axes.xaxis.set_major_formatter(lambda v, _: f"{v:.0%}")
        axes.yaxis.set_major_formatter(lambda v, _: f"{100 * v:.4g}%")
        axes.grid()
        axes.set_axisbelow(True)
        if len(kinds) > 1:
            axes.legend(loc="lower right")
        return style.save(fig, path)


def _kind(name: str) -> str:
    return name.rpartition(".")[2]


def _kinds(axes, names: Sequence[str]) -> None:
    """What the colours mean, where there is more than one."""
    from matplotlib.patches import Patch

    kinds = [kind for kind in _KINDS if any(_kind(name) == kind for name in names)]
    if len(kinds) > 1:
        patches = [Patch(color=_KINDS[kind], label=kind) for kind in kinds]
        axes.legend(
            handles=patches, loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, borderpad=0.1, handlelength=1
        )


def _labels(axes, points: Sequence[Tried]) -> None:
    """Labels above the points, alternately below where the next point is near."""
    span = max(p.cost for p in points) - min(p.cost for p in points) or 1.0
    last = -np.inf
    above = True
    for point in sorted(points, key=lambda p: p.cost):
        above = not above if point.cost - last < 0.12 * span else True
        last = point.cost
        if point.label:
            axes.annotate(point.label, (point.cost, point.accuracy), xytext=(0, 7 if above else -13), ha="center",
                          textcoords="offset points", size=6.5, color=style.INK)  # fmt: skip


def _unit(before: np.ndarray | None, after: np.ndarray) -> float:
    """The norm that is drawn as 1."""
    return float((after if before is None else before).max()) or float(after.max()) or 1.0


def _floor(sets: Sequence[tuple[np.ndarray | None, np.ndarray]], threshold: float | None) -> float:
    """The power of ten where the scale ends: below all that is drawn, 1e-4 at the least."""
    lowest = 0.5
    for before, after in sets:
        drawn = [float(values.min()) for values in (before, after) if values is not None]
        drawn += [] if threshold is None else [threshold]
        lowest = min(lowest, *(value / _unit(before, after) for value in drawn))
    return float(10.0 ** np.floor(np.log10(lowest))) if lowest > _FLOOR else _FLOOR


def _spectrum(axes, before: np.ndarray | None, after: np.ndarray, threshold: float | None, floor: float) -> None:
    from matplotlib.ticker import MaxNLocator

    unit = _unit(before, after)
    axes.set_yscale("log")
    if before is not None:
        axes.plot(np.arange(1, len(before) + 1), np.maximum(before / unit, floor), color=style.GREY, lw=1.0)
    at, values = np.arange(1, len(after) + 1), np.maximum(after / unit, floor)
    axes.fill_between(at, values, floor, color=style.BLUE, alpha=0.15, lw=0)
    axes.plot(at, values, color=style.BLUE, lw=1.3, marker="o" if len(at) < 3 else None, ms=3)
    if threshold is not None:
        axes.axhline(max(threshold / unit, floor), color=style.ORANGE, lw=0.9, ls=":")
    axes.set_ylim(0.8 * floor, 1.6 * max(1.0, values.max()))
    marks = [1.0, float(np.sqrt(floor)), floor] if floor in (_FLOOR, 0.01) else [1.0, floor]
    axes.set_yticks(marks, [f"{mark:g}" if mark > _FLOOR else "≤1e-4" for mark in marks], minor=False)
    axes.set_yticks([], minor=True)
    axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
    axes.tick_params(labelsize=6, pad=1.5, length=2)


def _legend(fig, height: float, before: Mapping, threshold: float | None) -> None:
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=style.GREY, lw=1.0, label="before")] if before else []
    lines.append(Line2D([], [], color=style.BLUE, lw=1.3, label="after the search"))
    if threshold is not None:
        lines.append(Line2D([], [], color=style.ORANGE, lw=0.9, ls=":", label=f"threshold {threshold:.3g}"))
    fig.text(0.02, 1 - 0.17 / height, "Norms of groups", size=style.LABEL, weight="bold", va="center")
    fig.legend(handles=lines, loc="center right", bbox_to_anchor=(0.99, 1 - 0.17 / height), ncols=len(lines))


def _norms(name: str, values: Sequence[float]) -> np.ndarray:
    norms = np.sort(np.asarray(values, float).ravel())[::-1]
    if not len(norms) or not np.isfinite(norms).all() or norms[-1] < 0:
        raise UseError(f"{name}: norms must be finite and not negative, one for each group")
    return norms


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else f"…{name[1 - most :]}"
