"""The searched architecture: which features each decoder stage fuses (SparseMask, Figure 3)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.masks.decoder import FULL, POINTWISE, SEPARABLE, DecoderMask, connections_of
from sparsemask.pictures import style

KINDS = {"encoder": style.BLUE, "global": style.ORANGE, "decoder": style.GREEN}
_LEGEND = {
    "encoder": "encoder feature to stage",
    "global": "global average to stage",
    "decoder": "stage to later stage",
}

_OPERATIONS = {POINTWISE: "1×1", SEPARABLE: "sep. 3×3", FULL: "3×3"}

# Inches.
_ROW, _TALL, _WIDE, _MARGIN, _BETWEEN = 0.62, 0.36, 1.42, 0.3, 2.3

Connection = tuple[str, int, int]  # kind, index of the source (0 for G), stage it feeds


def connections(mask: np.ndarray) -> list[Connection]:
    """The kept connections of a mask as (kind, source, stage): E_source, G or D_source feeds D_stage."""
    kept: list[Connection] = []
    for stage, source, column in np.argwhere(mask).tolist():
        if column == 0:
            kept.append(("encoder", source, stage))
        else:
            kept.append(("global", 0, stage) if source == 0 else ("decoder", source - 1, stage))
    return kept


def draw_architecture(
    mask: np.ndarray | DecoderMask,
    path: str | os.PathLike,
    strides: Sequence[int] | None = None,
    channels: Sequence[int] | None = None,
    title: str | None = None,
) -> Path:
    """Draw the network a connectivity mask describes and return the path.

    Left the encoder's features, from shallow (top) to deep, and their global average G; right the decoder's
    stages at the same sizes; an arrow for each kept connection; empty stages as ghosts. Stages of the wider space show
    their operation and width, and none is drawn after the output stage.

    Args:
        mask: bool (L, L, 2); row i = stage i, 0 the deepest; [i, j, 0] = E_j feeds stage i; [i, j, 1] = u_j
            feeds stage i with u_0 = G and u_j = D_{j-1}; false for j > i. Or a decoder of the wider space.
        path: the file to write; its suffix (.png, .svg, .pdf) chooses the format.
        strides: stride of E_0 … E_{L-1}, deepest first.
        channels: channels of E_0 … E_{L-1}, deepest first.
        title: a headline.

    Raises:
        UseError: another shape or dtype, or lists of another length or order.
    """
    path = style.check_path(path)
    decoder = mask if isinstance(mask, DecoderMask) else None
    mask = _checked(connections_of(mask), strides, channels)
    depth, kept = len(mask), connections(mask)
    output = depth - 1 if decoder is None else decoder.output
    reach = max((stage - source for kind, source, stage in kept if kind == "decoder"), default=1)
    left, right = _MARGIN + _WIDE / 2, _MARGIN + _WIDE * 1.5 + _BETWEEN
    width = right + _WIDE / 2 + _bulge(reach) + 0.3
    floor = 0.75  # room for the legend
    height = floor + (depth + 2) * _ROW + 0.55
    y = [floor + (stage + 1.5) * _ROW for stage in range(depth)]
    below, above = floor + 0.5 * _ROW, y[-1] + _ROW * 0.95

    with style.drawing():
        fig, axes = style.sheet(width, height)
        fed = {stage for _, _, stage in kept}
        used = {(kind, source) for kind, source, _ in kept}
        unfed = output not in fed
        _trunk(axes, left, right, y, above, below, output=None if unfed else output)
        _box(axes, left, above, ["picture"], style.GREY, wide=0.9, plain=True)
        _box(axes, right, above, ["head: classes"], style.GREY, wide=1.15, plain=True, ghost=unfed)
        for j in range(depth):
            label = [f"$E_{{{j}}}$", strides and f"/{strides[j]}", channels and f"{channels[j]} ch"]
            _box(axes, left, y[j], label, KINDS["encoder"], faint=("encoder", j) not in used)
        _box(axes, left, below, ["$G$", "1×1", None], KINDS["global"], faint=("global", 0) not in used)
        for i in range(output + 1):
            inputs = int(mask[i].sum())
            if decoder is not None and inputs:
                operation = f"{_OPERATIONS[int(decoder.operations[i])]}, {decoder.widths[i]}"
                label = [f"$D_{{{i}}}$ " + (f" /{strides[i]}" if strides else ""), None, operation]
            else:
                count = f"{inputs} input" + "s" * (inputs > 1) if inputs else "empty"
                label = [f"$D_{{{i}}}$", strides and f"/{strides[i]}", count]
            _box(axes, right, y[i], label, KINDS["decoder"], ghost=i not in fed)
        _arrows(axes, kept, left + _WIDE / 2, right - _WIDE / 2, y, below)
        stages = f"{len(fed)} of {depth} stages"
        context = f", context block at $D_{{{decoder.stages[0]}}}$" if decoder is not None and decoder.context else ""
        note = f"{len(kept)} of {depth * (depth + 1)} connections, {stages}{context}"
        axes.text(_MARGIN, height - 0.18, title or "Architecture", va="top", size=style.TITLE, weight="bold")
        axes.text(_MARGIN, height - 0.41, note, va="top", size=style.SMALL, color=style.GREY)
        _legend(axes, kept)
        return style.save(fig, path)


def _checked(mask: np.ndarray, *lists: Sequence[int] | None) -> np.ndarray:
    mask = np.asarray(mask)
    if mask.dtype != bool or mask.ndim != 3 or mask.shape != (len(mask), len(mask), 2) or not len(mask):
        raise UseError(f"a connectivity mask is a bool array (L, L, 2), this one is {mask.dtype} {mask.shape}")
    if any(mask[i, i + 1 :].any() for i in range(len(mask))):
        raise UseError("the mask connects a stage to a feature that comes after it (an entry with j > i)")
    for name, values in zip(("strides", "channels"), lists, strict=True):
        if values is not None and len(values) != len(mask):
            raise UseError(f"{len(values)} {name} given for a mask of {len(mask)} stages; give one each")
    if lists[0] is not None and list(lists[0]) != sorted(lists[0], reverse=True):
        raise UseError(f"strides go from the deepest feature to the shallowest, these are {list(lists[0])}")
    return mask


def _box(axes, x, y, texts, colour, wide=_WIDE, plain=False, faint=False, ghost=False) -> None:
    from matplotlib.colors import to_rgba
    from matplotlib.patches import FancyBboxPatch

    tall = 0.27 if plain else _TALL
    edge = style.PALE if ghost else to_rgba(colour, 0.45 if faint else 1)
    face = style.PAPER if ghost or plain else to_rgba(colour, 0.05 if faint else 0.16)
    axes.add_patch(
        FancyBboxPatch(
            (x - wide / 2, y - tall / 2), wide, tall, boxstyle="round,pad=0,rounding_size=0.07", lw=1.1,
            ec=edge, fc=face, ls=(0, (3, 2)) if ghost else "-", zorder=3,
        )
    )  # fmt: skip
    ink = "#A8A8A8" if ghost else style.GREY if plain or faint else style.INK
    # A name on the left, a size in the middle, an amount on the right; alone, it stands in the middle.
    alone = not any(texts[1:])
    spots = [(0, "center")] if alone else [(-0.44, "left"), (-0.1, "center"), (0.44, "right")]
    for (at, side), text in zip(spots, texts, strict=False):
        if text:
            axes.text(x + at * wide, y - 0.005, text, ha=side, va="center", size=8, color=ink, zorder=4)


def _trunk(axes, left, right, y, above, below, output: int | None) -> None:
    """The encoder's own way down, and the way out of the output stage."""
    points = [above - 0.135, *(level for row in reversed(y) for level in (row + _TALL / 2, row - _TALL / 2))]
    points.append(below + _TALL / 2)
    for start, end in zip(points[::2], points[1::2], strict=True):
        _arrow(axes, [(left, start), (left, end)], style.GREY, 0.9, 0.8, 6)
    if output is not None:
        _arrow(axes, [(right, y[output] + _TALL / 2), (right, above - 0.135)], style.GREY, 0.9, 0.8, 6)


def _arrows(axes, kept: list[Connection], start: float, end: float, y, below: float) -> None:
    crowd = min(max((len(kept) - 15) / 75, 0), 1)
    width, alpha, head = 1.5 - 0.8 * crowd, 0.95 - 0.4 * crowd, 8 - 3 * crowd
    out_left, into_left = _ports([k for k in kept if k[0] != "decoder"], y, below)
    far = [k for k in kept if k[0] == "decoder" and k[2] - k[1] > 1]
    out_right, into_right = _ports(far, y, below)
    edge = end + _WIDE
    for kind, source, stage in kept:
        key = (kind, source, stage)
        if kind != "decoder":
            a, b = out_left[key], into_left[key]
            points = [(start, a), (start + 0.45 * _BETWEEN, a), (end - 0.45 * _BETWEEN, b), (end, b)]
        elif stage - source == 1:
            x = end + _WIDE / 2
            points = [(x, y[source] + _TALL / 2), (x, y[stage] - _TALL / 2)]
        else:
            x = edge + _bulge(stage - source) * 4 / 3  # a cubic goes three quarters of the way to its controls
            points = [
                (edge, out_right[key]),
                (x, out_right[key]),
                (x, into_right[key]),
                (edge, into_right[key]),
            ]
        _arrow(axes, points, KINDS[kind], width, alpha, head)


def _ports(links: list[Connection], y, below: float) -> tuple[dict, dict]:
    """Where each link leaves its source's edge and enters its stage's, spread so that they do not meet."""

    def height(link: Connection) -> float:
        return below if link[0] == "global" else y[link[1]]

    leave, enter = {}, {}
    for source in {link[:2] for link in links}:
        ends = sorted((link for link in links if link[:2] == source), key=lambda link: link[2])
        # Arcs on the right nest when the farthest leaves lowest and enters highest; they leave from a box's
        # upper half and enter in its lower half, so that no arc ends where another begins.
        arc = source[0] == "decoder"
        leave |= _along(ends[::-1] if arc else ends, height(ends[0]), arc * 0.25)
    for stage in {link[2] for link in links}:
        ends = sorted((link for link in links if link[2] == stage), key=height)
        arc = ends[0][0] == "decoder"
        enter |= _along(ends[::-1] if arc else ends, y[stage], -arc * 0.25)
    return leave, enter


def _along(links: list[Connection], centre: float, half: float) -> dict[Connection, float]:
    """Heights around a box's centre; with `half` ±0.25 within its upper or lower half only."""
    room = (_TALL - 0.08) / (2 if half else 1)
    step = min(0.07, room / max(len(links), 1))
    middle = centre + half * (_TALL - 0.04)
    return {link: middle + (k - (len(links) - 1) / 2) * step for k, link in enumerate(links)}


def _bulge(distance: int) -> float:
    """How far to the right the arc to the `distance`-th next stage goes, in inches."""
    return 0.3 + 0.13 * (distance - 2) if distance > 1 else 0.0


def _arrow(axes, points, colour, width, alpha, head) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path as Outline

    codes = [Outline.MOVETO, *[Outline.CURVE4 if len(points) == 4 else Outline.LINETO] * (len(points) - 1)]
    axes.add_patch(
        FancyArrowPatch(
            path=Outline(points, codes), arrowstyle="-|>", mutation_scale=head, lw=width, color=colour,
            alpha=alpha, shrinkA=0, shrinkB=0, zorder=2, joinstyle="miter", capstyle="butt",
        )
    )  # fmt: skip


def _legend(axes, kept: list[Connection]) -> None:
    from matplotlib.lines import Line2D

    lines = []
    for kind, text in _LEGEND.items():
        number = sum(k[0] == kind for k in kept)
        lines.append(Line2D([], [], color=KINDS[kind], lw=2, label=f"{text} ({number})"))
    axes.legend(
        handles=lines, loc="lower left", bbox_to_anchor=(_MARGIN, 0.12), bbox_transform=axes.transData,
        ncols=1, borderpad=0, handlelength=1.6, labelspacing=0.25,
    )  # fmt: skip
