"""Clouds as pictures: prediction beside truth, what is wrong, what each level of a network keeps."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.pictures import style
from sparsemask.pictures.overlay import percent
from sparsemask.pictures.point_clouds.layers import Layer, as_layer, kept_layer
from sparsemask.pictures.point_clouds.render import Scene, aspect, checked, laid_open

_TALL, _GAP, _CAPTION, _LINE = 3.0, 0.1, 0.3, 0.22  # inches
_DPI = 150
_ACROSS = 2
_ENTRY = 0.42, 0.082  # inches of an entry of a legend: its square, and each letter

Panel = Layer | np.ndarray


def draw_clouds(
    path: str | os.PathLike,
    xyz: np.ndarray,
    panels: Mapping[str, Panel],
    names: Sequence[str] | None = None,
    colours: np.ndarray | None = None,
    view: str = "perspective",
    title: str | None = None,
) -> Path:
    """Draw a cloud once for every panel, side by side, with a legend of what occurs; return the path.

    A ceiling that would hide a room is left out, and the picture says so.

    Args:
        path: the file to write (.png, .svg, .pdf).
        xyz: float32 (N, 3), metres, z up.
        panels: what each shows, by its title: classes (N,) with negative ones for no label, a bool mask (N,), colours
            uint8 (N, 3), or a :class:`~sparsemask.pictures.point_clouds.layers.Layer`.
        names, colours: of the classes; see :func:`~sparsemask.pictures.point_clouds.layers.as_layer`.
        view: 'bird' or 'perspective'.
        title: a headline.

    Raises UseError without panels, for panels of another number of points, and for what `as_layer` refuses.
    """
    path, xyz = style.check_path(path), checked(xyz)
    if not panels:
        raise UseError(f"{path}: no panels to draw")
    layers = panel_layers(panels, len(xyz), names, colours)
    return _draw(path, xyz, layers, view, title)


def draw_kept(
    path: str | os.PathLike,
    xyz: np.ndarray,
    masks: Sequence[np.ndarray],
    view: str = "perspective",
    title: str | None = None,
) -> Path:
    """Draw what every level of a network keeps: kept and dropped points of the level over the whole cloud in grey.

    Args:
        path: the file to write (.png, .svg, .pdf).
        xyz: float32 (N, 3), the crop as the network took it, shuffled; metres, z up.
        masks: bool (N_l,) of each level, or (1, N_l); it speaks of the first N_l points.
        view: 'bird' or 'perspective'.
        title: a headline.

    Returns the path. Raises UseError without masks and for masks of more points than the cloud has.
    """
    path, xyz = style.check_path(path), checked(xyz)
    if not len(masks):
        raise UseError(f"{path}: no masks to draw")
    layers = {}
    for level, mask in enumerate(masks, 1):
        share = percent(np.mean(mask)) if np.size(mask) else "nothing"
        layers[f"level {level}: {share} of {np.size(mask)} points kept"] = kept_layer(mask, len(xyz))
    return _draw(path, xyz, layers, view, title)


def panel_layers(
    panels: Mapping[str, Panel], points: int, names: Sequence[str] | None, colours: np.ndarray | None
) -> dict[str, Panel]:
    """A layer, or colours, for every panel; UseError for one of another number of points."""
    layers = {caption: as_layer(values, names, colours) for caption, values in panels.items()}
    for caption, layer in layers.items():
        count = len(layer.index if isinstance(layer, Layer) else layer)
        if count != points:
            raise UseError(f"{caption}: {count} values for a cloud of {points} points")
    return layers


def _draw(path: Path, xyz: np.ndarray, layers: Mapping[str, Panel], view: str, title: str | None) -> Path:
    shown = laid_open(xyz, view)
    seen, layers = xyz[shown], {caption: _part(layer, shown) for caption, layer in layers.items()}
    entries = _entries([layer for layer in layers.values() if isinstance(layer, Layer)])
    wide, across = _TALL * aspect(seen, view), min(_ACROSS, len(layers))
    down, empty = -(-len(layers) // across), -len(layers) % across
    width = across * wide + (across + 1) * _GAP
    # The legend takes the empty places of the last row if there are any, else a strip below.
    room = wide if empty else width - 2 * _GAP
    columns = max(1, int(room / _widest(entries)))
    strip = -(-len(entries) // columns) * _LINE
    beside = bool(empty) and strip <= _TALL
    note = "" if shown.all() else "Left out: the ceiling" + (" and the walls in front." if view != "bird" else ".")
    head = 0.36 if title else 0.06
    foot = (0 if beside else strip + 0.08) + (_LINE if note else 0) + 0.06
    height = head + down * (_TALL + _CAPTION) + foot
    with style.drawing():
        fig = style.figure(width, height)
        scene = Scene(seen, view, (round(_TALL * _DPI), round(wide * _DPI)))
        for k, (caption, layer) in enumerate(layers.items()):
            left = _GAP + (k % across) * (wide + _GAP)
            axes = style.place(fig, left, height - head - (k // across + 1) * (_TALL + _CAPTION), wide, _TALL)
            if isinstance(layer, Layer):
                picture = scene.picture(layer.rgb, np.isin(layer.index, layer.front), layer.larger)
            else:
                picture = scene.picture(layer)
            axes.imshow(picture, interpolation="antialiased", aspect="auto")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set(visible=True, color=style.PALE, lw=0.6)
            axes.set_title(caption, pad=4)
        if title:
            fig.text(_GAP / width, 1 - 0.1 / height, title, va="top", size=style.TITLE, weight="bold")
        start = (width - wide - _GAP, foot + _TALL) if beside else (_GAP, foot - 0.1)
        _legend(fig, entries, start, columns, room / columns)
        if note:
            fig.text(_GAP / width, 0.14 / height, note, va="center", size=style.SMALL, color=style.GREY)
        return style.save(fig, path)


def _legend(fig, entries, start: tuple[float, float], columns: int, step: float) -> None:
    """Entries in rows from an upper left corner, in inches, `step` from one to the next."""
    width, height = fig.get_size_inches()
    for k, (name, colour) in enumerate(entries):
        x, y = start[0] + (k % columns) * step, start[1] - (k // columns + 0.5) * _LINE
        axes = style.place(fig, x, y - 0.06, 0.2, 0.12)
        axes.set(xticks=[], yticks=[], facecolor=colour)
        axes.spines[:].set(visible=True, color=style.GREY, lw=0.4)
        fig.text((x + 0.27) / width, y / height, name, va="center", size=style.LABEL)


def _part(layer: Panel, shown: np.ndarray) -> Panel:
    return replace(layer, index=layer.index[shown]) if isinstance(layer, Layer) else layer[shown]


def _entries(layers: Sequence[Layer]) -> list[tuple[str, np.ndarray]]:
    """(name, colour in 0..1) of everything that occurs in one of the layers, once; layers of a kind together."""
    kinds: dict[tuple, dict[int, tuple]] = {}
    for layer in layers:
        kind = kinds.setdefault(tuple(layer.names), {})
        kind.update({k: tuple(layer.colours[k]) for k, _ in layer.occurring()})
    listed = [(names[k], kind[k]) for names, kind in kinds.items() for k in sorted(kind)]
    return [(name, np.divide(colour, 255)) for name, colour in dict.fromkeys(listed)]


def _widest(entries) -> float:
    square, letter = _ENTRY
    return square + letter * max((len(name) for name, _ in entries), default=0)
