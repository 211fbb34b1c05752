"""Drawings of disparities: colour-mapped, beside truth and error, and the voxels that a network computes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.pictures import style
from sparsemask.pictures.overlay import percent

MAP, ERROR_MAP, KEPT_MAP = "turbo", "magma", "viridis"
NOTHING = "#B8B8B8"  # where there is no value
_WORST = 5.0  # px, at the end of the errors' colours
_WIDE, _GAP, _CAPTION, _BAR = 2.5, 0.1, 0.24, 0.42  # inches

Sample = tuple[str, np.ndarray, np.ndarray, np.ndarray]


def colours(disparity: np.ndarray, low: float = 0.0, high: float | None = None, name: str = MAP) -> np.ndarray:
    """A map (H, W) in colours, uint8 (H, W, 3): `low` to `high` (default: its largest); grey where it is 0 or NaN."""
    from matplotlib import colormaps, colors

    values = np.asarray(disparity, np.float64)
    has_value = np.isfinite(values) & (values > 0)
    high = float(values[has_value].max(initial=low + 1)) if high is None else high
    shares = np.where(has_value, (np.where(has_value, values, low) - low) / max(high - low, 1e-6), 0)
    mapped = colormaps[name](shares.clip(0, 1), bytes=True)[..., :3]
    grey = np.rint(255 * np.array(colors.to_rgb(NOTHING))).astype(np.uint8)
    return np.where(has_value[..., None], mapped, grey)


def draw_disparities(samples: Sequence[Sample], path: str | os.PathLike) -> Path:
    """Draw a row for each pair: left image | disparity | truth | error, with colour bars; return the path.

    Disparity and truth of a row share their colours; errors beyond 5 px have that colour; grey: no truth.

    Args:
        samples: (name, left uint8 (H, W, 3), disparity (H, W), truth (H, W), 0 = no value), in pixels.
        path: the file to write (.png, .svg, .pdf).

    Raises:
        UseError: no samples, or maps of different sizes.
    """
    path = style.check_path(path)
    if not samples:
        raise UseError(f"{path}: no samples to draw")
    for name, left, disparity, truth in samples:
        if not left.shape[:2] == disparity.shape == truth.shape:
            raise UseError(f"{name}: maps of {disparity.shape} and {truth.shape} for a picture of {left.shape[:2]}")
    talls = [_WIDE * min(left.shape[0] / left.shape[1], 1.5) for _, left, _, _ in samples]
    height = 0.3 + sum(talls) + len(samples) * (_CAPTION + _GAP)
    with style.drawing():
        fig = style.figure(4 * _WIDE + 3 * _GAP + 2 * _GAP + 2 * _BAR, height)
        lefts = [_GAP, 2 * _GAP + _WIDE, 3 * _GAP + 2 * _WIDE, 4 * _GAP + 3 * _WIDE + _BAR]
        bottom = height - 0.3
        for number, (sample, tall) in enumerate(zip(samples, talls, strict=True)):
            bottom -= tall
            _row(fig, sample, lefts, bottom, tall, titled=number == 0)
            bottom -= _CAPTION + _GAP
        return style.save(fig, path)


def _row(fig, sample: Sample, lefts: list[float], bottom: float, tall: float, titled: bool) -> None:
    name, left, disparity, truth = sample
    has_truth = truth > 0
    error = np.where(has_truth, np.abs(disparity - truth), np.nan)
    high = float(np.percentile(truth[has_truth] if has_truth.any() else disparity, 99.5)) or 1.0
    d1 = np.mean((error > 3) & (error > 0.05 * truth), where=has_truth) if has_truth.any() else np.nan
    scored = f"EPE {np.nanmean(error):.2f} px, D1 {d1:.1%}" if has_truth.any() else "no truth"
    blank = np.where(has_truth, truth, np.nan)
    panels = [
        (left, name, "left picture"),
        (disparity, "", "disparity"),
        (blank, "", "truth"),
        (error, scored, "error"),
    ]
    for k, (values, caption, title) in enumerate(panels):
        axes = style.place(fig, lefts[k], bottom, _WIDE, tall)
        options = {} if k == 0 else {"cmap": _blank_map(ERROR_MAP if k == 3 else MAP), "vmin": 0}
        image = axes.imshow(values, interpolation="antialiased", vmax=(None, high, high, _WORST)[k], **options)
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(visible=True, color=style.PALE, lw=0.6)
        axes.set_xlabel(caption[:40], size=style.SMALL, labelpad=3, color=style.INK)
        if titled:
            axes.set_title(title, loc="center", pad=4)
        if k >= 2:
            _bar(fig, image, lefts[k] + _WIDE + 0.06, bottom, tall, "px", "max")


def _bar(fig, image, left: float, bottom: float, tall: float, unit: str, extend: str = "neither") -> None:
    bar = fig.colorbar(image, cax=style.place(fig, left, bottom, 0.09, tall), extend=extend, extendfrac=0.04)
    bar.ax.tick_params(length=2, pad=2)
    bar.outline.set(lw=0.5, color=style.GREY)
    bar.ax.set_title(unit, size=style.SMALL, pad=7, fontweight="normal", loc="left")


def _blank_map(name: str):
    from matplotlib import colormaps

    return colormaps[name].with_extremes(bad=NOTHING)


def draw_voxels(
    left,
    masks: Sequence[np.ndarray],
    path: str | os.PathLike,
    title: str | None = None,
    disparity: np.ndarray | None = None,
) -> Path:
    """Draw which voxels of the volume are computed; return the path.

    Masks that differ are drawn, module by module: at every location of the image the share of disparities that
    are kept, and below it, seen from above, the share of rows in which a disparity is kept. With `disparity` the map is
    drawn beside the image, and its column medians as a line in the views from above.

    Args:
        left: the left image: a normalised tensor (3, H, W), or uint8 (H, W, 3).
        masks: bool (D, h, w) of the layers in order, equal ones next to each other or not.
        path: the file to write (.png, .svg, .pdf).
        title: a headline.
        disparity: (H, W) in pixels.

    Raises:
        UseError: no masks.
    """
    from sparsemask.tasks.stereo.batch import picture_of

    path = style.check_path(path)
    if not len(masks):
        raise UseError(f"{path}: no masks to draw")
    image = left if isinstance(left, np.ndarray) else picture_of(left)
    shape = image.shape[:2]
    chosen = _finest(masks)
    panels = [(image, "left picture")] + ([] if disparity is None else [(disparity, "disparity")])
    tall = _WIDE * min(shape[0] / shape[1], 1.5)
    low = max(0.6, tall * 0.6)  # of the views from above
    head, columns = 0.55 if title else 0.3, 1 + max(len(chosen), 1)
    below = max(low + 0.5, 0 if disparity is None else tall + 0.3)
    height = head + tall + _CAPTION + below
    with style.drawing():
        fig = style.figure(columns * (_WIDE + _GAP) + _GAP + _BAR + 0.35, height)
        at, top = [_GAP + k * (_WIDE + _GAP) for k in range(columns)], height - head - tall
        for number, (values, caption) in enumerate(panels):
            axes = style.place(fig, at[0], top - number * (_CAPTION + tall), _WIDE, tall)
            axes.imshow(values, cmap=_blank_map(MAP), interpolation="antialiased")
            _bare(axes, caption)
        for number, mask in enumerate(chosen, 1):
            _module(fig, mask, number, (at[number] + 0.35, top, tall, low), shape, disparity, number == len(chosen))
        if title:
            fig.text(_GAP / fig.get_figwidth(), 1 - 0.1 / height, title, va="top", size=style.TITLE, weight="bold")
        return style.save(fig, path)


def _module(fig, mask: np.ndarray, number: int, layout, shape, disparity, last: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    left, top, tall, low = layout
    axes = style.place(fig, left, top, _WIDE, tall)
    image = axes.imshow(mask.mean(0), cmap=KEPT_MAP, vmin=0, vmax=1, interpolation="nearest", aspect="auto")
    _bare(axes, f"module {number}: {percent(mask.mean())} of voxels kept")
    axes = style.place(fig, left, top - _CAPTION - low, _WIDE, low)
    most = shape[1] * mask.shape[0] / mask.shape[2]  # voxels are cubes: as many pixels of disparity as of width
    axes.imshow(
        mask.mean(1), cmap=KEPT_MAP, vmin=0, vmax=1, interpolation="nearest", aspect="auto",
        extent=(0, shape[1], 0, most), origin="lower",
    )  # fmt: skip
    if disparity is not None:
        with np.errstate(all="ignore"):
            axes.plot(np.nanmedian(np.where(disparity > 0, disparity, np.nan), 0), color="white", lw=0.8)
    axes.set(xlim=(0, shape[1]), ylim=(0, most), xlabel="column, px")
    axes.xaxis.set_major_locator(MaxNLocator(5, prune="upper"))  # the last would touch the next view's first
    axes.tick_params(length=2, pad=2)
    if number == 1:
        axes.set_ylabel("disparity, px", labelpad=2)
    else:
        axes.set_yticks([])
    if last:
        _bar(fig, image, left + _WIDE + 0.06, top, tall, "kept")


def _bare(axes, caption: str) -> None:
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=style.PALE, lw=0.6)
    axes.set_xlabel(caption, labelpad=3, color=style.INK, size=style.SMALL)


def _finest(masks: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Of every module the finest mask: a module's layers go down to coarser sizes and back up to its finest."""
    arrays = [np.asarray(mask, bool) for mask in masks]
    largest = max(mask.size for mask in arrays)
    return [mask for mask in arrays if mask.size == largest]


def draw_errors(names: Sequence[str], epe: np.ndarray, d1: np.ndarray, path: str | os.PathLike) -> Path:
    """Draw the EPE of every pair, worst on top, with its D1 at the end of the bar; return the path.

    Args:
        names: of the pairs; beyond 40 they are not written.
        epe: end-point errors in pixels; pairs without truth (NaN) are left out.
        d1: shares of bad pixels in [0, 1].
        path: the file to write (.png, .svg, .pdf).
    """
    path = style.check_path(path)
    epe, d1 = np.asarray(epe, float), np.asarray(d1, float)
    order = [k for k in np.argsort(epe) if np.isfinite(epe[k])]
    few, at = len(order) <= 40, np.arange(len(order))
    with style.drawing():
        height = 0.85 + max(1, len(order)) * (0.22 if few else 8.8 / len(order))
        fig = style.figure(6.0, height)
        axes = style.place(fig, 1.75, 0.48, 3.6, height - 0.6)
        axes.barh(at, epe[order], color=style.BLUE, height=0.6)
        if few:
            for k, index in enumerate(order):
                axes.annotate(f"D1 {d1[index]:.1%}", (epe[index], k), (4, 0), textcoords="offset points", va="center",
                              size=style.SMALL, color=style.GREY, annotation_clip=False)  # fmt: skip
        axes.set(xlabel="EPE, px", ylim=(-0.7, max(1, len(order)) - 0.3))
        axes.set_yticks(at if few else [], [names[i][-24:] for i in order] if few else [])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        return style.save(fig, path)
