"""Comparison of networks: milliseconds against quality, a bubble for each."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from sparsemask.errors import UseError
from sparsemask.pictures import style
from sparsemask.tables import format_count

_LARGEST = 0.2  # inches, radius of the largest bubble


def draw_comparison(
    rows: Sequence[Mapping[str, object]],
    path: str | os.PathLike,
    title: str = "Quality and time",
    metric: str = "mean IoU",
) -> Path:
    """Draw milliseconds against mIoU, the bubbles' areas in proportion to the parameters; return the path.

    Args:
        rows: each with 'name', 'milliseconds', 'miou', 'parameters' and, if it has any, 'connections' and
            'multiply_adds'. Rows without a time or a score are left out. A row with a true 'highlight' stands
            out.
        path: the file to write (.png, .svg, .pdf).
        title: the headline.
        metric: what 'miou' is called on the axis.

    Raises:
        UseError: no row has both a time and a score.
    """
    path = style.check_path(path)
    rows = [row for row in rows if _finite(row.get("milliseconds")) and _finite(row.get("miou"))]
    if not rows:
        raise UseError(f"{path}: nothing to compare, no row has both a time and a score")
    most = max(float(row.get("parameters") or 0) for row in rows) or 1.0
    radii = [_LARGEST * math.sqrt(max(float(row.get("parameters") or 0) / most, 0.02)) for row in rows]
    with style.drawing():
        fig = style.figure(6.4, 4.2)
        axes = style.place(fig, 0.65, 0.55, 5.5, 3.05)
        axes.grid()
        axes.set_axisbelow(True)
        for row, radius in zip(rows, radii, strict=True):
            colour = style.ORANGE if row.get("highlight") else style.BLUE
            axes.scatter(
                row["milliseconds"], row["miou"], s=math.pi * (radius * 72) ** 2, color=colour, alpha=0.55,
                edgecolor=colour, lw=1, zorder=3,
            )  # fmt: skip
        axes.margins(0.18, 0.2)
        axes.set(xlabel="milliseconds a picture", ylabel=metric)
        axes.set_title(title, size=style.TITLE, pad=20)
        axes.text(
            0, 1.02, "up and left is better; a bubble's area is its number of parameters",
            transform=axes.transAxes, size=style.SMALL, color=style.GREY, va="bottom",
        )  # fmt: skip
        _labels(fig, axes, rows, radii)
        return style.save(fig, path)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _text(row: Mapping[str, object]) -> tuple[str, str]:
    """A bubble's name, and the details below it."""
    details = []
    if row.get("parameters"):
        details.append(format_count(row["parameters"]))
    if row.get("connections") is not None:
        details.append(f"{row['connections']} conn.")
    return str(row["name"]), ", ".join(details)


def _labels(fig, axes, rows, radii) -> None:
    """Write each label at the free position nearest to its bubble, without overlaps."""
    from matplotlib.transforms import Bbox

    fig.canvas.draw()
    renderer, inch = fig.canvas.get_renderer(), fig.dpi
    centres = [axes.transData.transform((row["milliseconds"], row["miou"])) for row in rows]
    bubbles = [
        Bbox.from_bounds(x - r * inch, y - r * inch, 2 * r * inch, 2 * r * inch)
        for (x, y), r in zip(centres, radii, strict=True)
    ]
    frame, occupied = axes.get_window_extent(renderer), []
    for k, row in enumerate(rows):
        name, details = _text(row)
        text = axes.text(0, 0, f"{name}\n{details}".strip(), size=style.SMALL, transform=None, zorder=5)
        size = text.get_window_extent(renderer)
        best, least = None, math.inf
        for away, angle in ((away, angle) for away in (0.04, 0.15, 0.3, 0.5) for angle in range(0, 360, 30)):
            box = _beside(centres[k], radii[k] * inch, away * inch, math.radians(angle), size)
            clash = sum(_overlap(box, obstacle) for obstacle in (*occupied, *bubbles))
            clash += 4 * (1 - _overlap(box, frame))
            cost = clash * 100 + away
            if cost < least - 1e-9:
                best, least = box, cost
        occupied.append(best)
        text.set_position((best.x0, best.y0))
        _tie(axes, centres[k], radii[k] * inch, best, inch)


def _beside(centre, radius: float, away: float, angle: float, size):
    from matplotlib.transforms import Bbox

    x = centre[0] + (radius + away) * math.cos(angle) + (math.cos(angle) - 1) / 2 * size.width
    y = centre[1] + (radius + away) * math.sin(angle) + (math.sin(angle) - 1) / 2 * size.height
    return Bbox.from_bounds(x, y, size.width, size.height)


def _overlap(box, other) -> float:
    """The share of the area of `box` that `other` covers."""
    wide = min(box.x1, other.x1) - max(box.x0, other.x0)
    high = min(box.y1, other.y1) - max(box.y0, other.y0)
    return wide * high / (box.width * box.height) if wide > 0 and high > 0 else 0.0


def _tie(axes, centre, radius: float, box, inch: float) -> None:
    """A thin line from a bubble to a label that had to stand away from it."""
    near = (min(max(centre[0], box.x0), box.x1), min(max(centre[1], box.y0), box.y1))
    distance = math.dist(centre, near)
    if distance < radius + 0.12 * inch:
        return
    start = [c + (n - c) * radius / distance for c, n in zip(centre, near, strict=True)]
    axes.plot([start[0], near[0]], [start[1], near[1]], transform=None, color=style.GREY, lw=0.6, zorder=4)
