"""Enlarged images beside bicubic and the truth, and the PSNR of each image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.ndimage import uniform_filter

from sparsemask.errors import UseError
from sparsemask.pictures import style

CROP = 80  # side of the crops, in high-resolution pixels
_WIDE, _GAP, _CAPTION, _TOP = 1.9, 0.08, 0.2, 0.32  # inches
_TITLES = ("picture", "bicubic", "network", "truth")

Sample = tuple[str, np.ndarray, np.ndarray, np.ndarray, float, float]


def draw_super_resolution(samples: Sequence[Sample], path: str | os.PathLike, crop: int = CROP) -> Path:
    """Draw a row for each image: the whole with a box, then that box bicubic | network | truth; return the path.

    The box is where bicubic errs most. The captions' PSNR are of whole images.

    Args:
        samples: (name, bicubic, prediction, truth, bicubic's PSNR, PSNR), the images uint8 (H, W, 3).
        path: the file to write (.png, .svg, .pdf).
        crop: side of the box, in pixels.

    Raises:
        UseError: no samples, or images of different sizes.
    """
    path = style.check_path(path)
    if not samples:
        raise UseError(f"{path}: no samples to draw")
    for name, *images, _, _ in samples:
        if len({image.shape for image in images}) != 1:
            raise UseError(f"{name}: bicubic, prediction and truth have shapes {[p.shape for p in images]}")
    high = _WIDE + _CAPTION
    height = _TOP + len(samples) * (high + _GAP)
    with style.drawing():
        fig = style.figure(4 * _WIDE + 5 * _GAP, height)
        for number, (name, bicubic, prediction, truth, before, after) in enumerate(samples):
            bottom = height - _TOP - number * (high + _GAP) - _WIDE
            top, left, side = _box(bicubic, truth, crop)
            cut = (slice(top, top + side), slice(left, left + side))
            captions = (name, f"{before:.2f} dB", f"{after:.2f} dB ({after - before:+.2f})", "")
            for k, image in enumerate((truth, bicubic[cut], prediction[cut], truth[cut])):
                axes = style.place(fig, _GAP + k * (_WIDE + _GAP), bottom, _WIDE, _WIDE)
                axes.imshow(image, interpolation="nearest" if k else "antialiased")
                axes.set(xticks=[], yticks=[])
                axes.spines[:].set(visible=k > 0, color=style.PALE, lw=0.6)
                if number == 0:
                    x = _GAP + k * (_WIDE + _GAP) + _WIDE / 2
                    fig.text(x / fig.get_figwidth(), 1 - _TOP / 2 / height, _TITLES[k], ha="center", va="center",
                             size=style.LABEL, weight="bold")  # fmt: skip
                if k == 0:
                    _frame(axes, top, left, side)
                if captions[k]:
                    axes.set_xlabel(captions[k], size=style.SMALL, labelpad=3)
        return style.save(fig, path)


def draw_psnr(names: Sequence[str], before: np.ndarray, after: np.ndarray, path: str | os.PathLike) -> Path:
    """Draw the PSNR of each image, bicubic's and the network's joined by a line; return the path.

    Args:
        names: of the images, best gain on top; beyond 40 they are not written.
        before: PSNR of bicubic in dB; infinite ones are left out.
        after: PSNR of the network in dB, likewise.
        path: the file to write (.png, .svg, .pdf).
    """
    path = style.check_path(path)
    before, after = np.asarray(before, float), np.asarray(after, float)
    finite = np.flatnonzero(np.isfinite(before) & np.isfinite(after))
    order = finite[np.argsort((after - before)[finite])]
    at = np.arange(len(order))
    step = 0.22 if len(order) <= 40 else 8.8 / len(order)
    with style.drawing():
        height = 0.85 + max(1, len(order)) * step
        fig = style.figure(6.0, height)
        axes = style.place(fig, 1.45, 0.48, 4.35, height - 0.78)
        axes.hlines(at, before[order], after[order], color=style.PALE, lw=2, zorder=1)
        axes.scatter(before[order], at, s=22, color=style.GREY, zorder=2, label="bicubic")
        axes.scatter(after[order], at, s=22, color=style.BLUE, zorder=3, label="network")
        axes.set(xlabel="PSNR, dB", ylim=(-0.7, max(1, len(order)) - 0.3))
        few = len(order) <= 40
        axes.set_yticks(at if few else [], [_short(names[i]) for i in order] if few else [])
        axes.tick_params(axis="y", length=0)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, borderpad=0.2, handletextpad=0.2)
        return style.save(fig, path)


def _box(bicubic: np.ndarray, truth: np.ndarray, crop: int) -> tuple[int, int, int]:
    """Top, left and side of the square where bicubic errs most."""
    side = min(crop, *truth.shape[:2])
    error = np.square(bicubic.astype(np.float32) - truth).mean(-1)
    margin = error.shape[0] - side + 1, error.shape[1] - side + 1
    mean = uniform_filter(error, side, mode="nearest")[side // 2 :, side // 2 :][: margin[0], : margin[1]]
    top, left = np.unravel_index(int(mean.argmax()), mean.shape)
    return int(top), int(left), side


def _frame(axes, top: int, left: int, side: int) -> None:
    from matplotlib.patches import Rectangle

    for colour, width in (("white", 2.2), (style.ORANGE, 1.1)):  # the rim keeps it visible on orange too
        axes.add_patch(Rectangle((left - 0.5, top - 0.5), side, side, fill=False, ec=colour, lw=width))


def _short(name: str) -> str:
    return name if len(name) <= 18 else f"{name[:17]}…"
