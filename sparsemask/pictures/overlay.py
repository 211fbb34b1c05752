"""Data masks over their image: kept locations bright, dropped ones dark."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.pictures import style

_DIM, _TINT = 0.28, np.array([0.05, 0.10, 0.24])  # of dropped places: a share of their grey, and a colour of night
_RAMP = "inferno"  # of how many modules compute: dark to bright, told apart without colours too
_LUMA = np.array([0.299, 0.587, 0.114])
_ACROSS, _WIDE, _GAP, _CAPTION = (3, 4), 2.6, 0.1, 0.27  # panels a row, and inches
_LONGEST = 720  # pixels; larger pictures are drawn smaller


def overlay(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The image where the mask keeps it, a dark blue shade of it elsewhere.

    Args:
        image: uint8 (H, W, 3) or (H, W).
        mask: bool (H, W), or of a size that divides the image's.

    Returns:
        uint8 (H, W, 3).

    Raises:
        UseError: the sizes do not fit.
    """
    image = np.asarray(image)
    image = image if image.ndim == 3 else image[..., None].repeat(3, 2)
    mask = _spread(np.asarray(mask, bool), image)
    dark = _DIM * (image @ _LUMA)[..., None] + 255 * _TINT
    return np.where(mask[..., None], image, dark.round()).astype(np.uint8)


def heat(image: np.ndarray, masks: Sequence[np.ndarray]) -> np.ndarray:
    """How many of the modules compute at each location, over a grey shade of the image: dark none, bright all.

    Args:
        image: uint8 (H, W, 3).
        masks: bool of each module, (H, W) or of a size that divides the image's.

    Returns:
        uint8 (H, W, 3).

    Raises:
        UseError: no masks, or the sizes do not fit.
    """
    if not len(masks):
        raise UseError("no masks to draw")
    image = np.asarray(image)
    share = np.mean([_spread(np.asarray(mask, bool), image) for mask in masks], axis=0)
    from matplotlib import colormaps

    colour = colormaps[_RAMP](share)[..., :3]
    grey = (image @ _LUMA)[..., None]
    return np.rint(_DIM * grey + (1 - _DIM) * 255 * colour).astype(np.uint8)


def _spread(mask: np.ndarray, image: np.ndarray) -> np.ndarray:
    """The mask at the image's size."""
    across = [a // b if b and a % b == 0 else 0 for a, b in zip(image.shape[:2], mask.shape, strict=True)]
    if 0 in across:
        raise UseError(f"a mask of {mask.shape} does not fit a picture of {image.shape[:2]}")
    return mask.repeat(across[0], 0).repeat(across[1], 1)


def blend(
    image: np.ndarray, palette: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None, opacity: float = 0.55
) -> np.ndarray:
    """The image with the classes' colours over it, and a line where two classes meet.

    Args:
        image: uint8 (H, W, 3).
        palette: colours (N, 3), 0 to 255.
        labels: classes (H, W), below N.
        weights: how much of the colour each pixel takes, (H, W) in [0, 1]; None: all of it.
        opacity: of the colours, 0 to 1. Black, mostly the background's, leaves the image as it is.

    Returns:
        uint8 (H, W, 3).
    """
    palette = np.asarray(palette, np.float32)
    share = opacity * (palette.max(axis=1) > 0).astype(np.float32)[labels]
    share = share if weights is None else share * np.asarray(weights, np.float32)
    mixed = image + share[..., None] * (palette[labels] - image)
    edge = np.zeros(labels.shape, bool)
    edge[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    edge[1:] |= labels[1:] != labels[:-1]
    return np.rint(np.where(edge[..., None], 0.25 * mixed + 0.75 * 255, mixed)).astype(np.uint8)


def draw_masks(
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    path: str | os.PathLike,
    title: str | None = None,
    names: Sequence[str] | None = None,
) -> Path:
    """Draw the image and, module by module, its data mask over it, the keep ratio below each; return the path.

    Modules that keep every location are named below the image, which is what they would show.

    Args:
        image: uint8 (H, W, 3) or (H, W).
        masks: bool (H, W) of each module.
        path: the file to write (.png, .svg, .pdf).
        title: a headline.
        names: of the modules; without them they are counted.

    Raises:
        UseError: no masks, or the sizes do not fit.
    """
    path = style.check_path(path)
    if not len(masks):
        raise UseError(f"{path}: no masks to draw")
    image = np.asarray(image)
    names = names or [f"module {number}" for number in range(1, len(masks) + 1)]
    whole = [name for name, mask in zip(names, masks, strict=True) if np.all(mask)]
    caption = "picture"
    if len(whole) > 1:
        caption = f"all kept: {'every module' if len(whole) == len(masks) else shortened(whole, 24)}"
    panels = [(image if image.ndim == 3 else image[..., None].repeat(3, 2), caption)]
    for name, mask in zip(names, masks, strict=True):
        shown = overlay(image, mask)  # which refuses sizes that do not fit
        if len(whole) < 2 or not np.all(mask):
            panels.append((shown, f"{name}: {percent(np.mean(mask))} kept"))
    step = -(-max(image.shape[:2]) // _LONGEST)
    across = min(min(_ACROSS, key=lambda n: -len(panels) % n), len(panels))  # the fewest empty places
    down = math.ceil(len(panels) / across)
    tall = _WIDE * min(image.shape[0] / image.shape[1], 2.0)
    head = 0.34 if title else 0.0
    width, height = across * _WIDE + (across + 1) * _GAP, down * (tall + _CAPTION) + _GAP + head
    with style.drawing():
        fig = style.figure(width, height)
        for k, (panel, caption) in enumerate(panels):
            left = _GAP + (k % across) * (_WIDE + _GAP)
            bottom = height - head - _GAP - tall - (k // across) * (tall + _CAPTION)
            axes = style.place(fig, left, bottom, _WIDE, tall)
            axes.imshow(panel[::step, ::step], interpolation="nearest" if k else "antialiased")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, color=style.PALE, lw=0.6)
            below = axes.set_xlabel(caption, labelpad=3, color=style.INK)
            # Names of somebody's modules may be long: in smaller letters they end with their panel.
            below.set_size(below.get_size() * min(1.0, _WIDE * fig.dpi / below.get_window_extent().width))
        if title:
            fig.text(_GAP / width, 1 - 0.1 / height, title, va="top", size=style.TITLE, weight="bold")
        return style.save(fig, path)


def shortened(names: Sequence[str], most: int = 34) -> str:
    """Names in a line of about `most` letters: 'module 1, 2, 5, ... (9)'."""
    first, *rest = names
    common = os.path.commonprefix([name.rpartition(" ")[0] + " " for name in names]) if " " in first else ""
    line = first
    for name in rest:
        longer = f"{line}, {name.removeprefix(common)}"
        if len(longer) > most:
            return f"{line}, ... ({len(names)})"
        line = longer
    return line


def percent(share: float) -> str:
    """'48 %', '0.3 %': no share but 0 and 1 reads as one of them."""
    hundred = 100 * float(share)
    return f"{hundred:.0f} %" if hundred in (0, 100) or 1 <= hundred <= 99 else f"{hundred:.1f} %"
