"""The front of a search: score against cost, its points labelled."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path

from sparsemask.pictures import style

_LINE = 92  # letters of a line across the picture


def draw_front(
    points: Sequence[tuple[float, float]],
    others: Sequence[tuple[float, float]],
    path: Path,
    cost: str,
    score: str,
    labels: Sequence[str],
    chosen: int | None = None,
    budget: float | None = None,
    rest: str = "all candidates",
) -> Path:
    """Draw a front among all candidates.

    Args:
        points: (cost, score) of the front, the cheapest first.
        others: of all candidates.
        path: of the image.
        cost: title of the horizontal axis.
        score: of the vertical one.
        labels: of the front's points.
        chosen: number of the point that is taken.
        budget: drawn as a line.
        rest: what the others are, in words.
    """
    note = f"up and left is better; orange: the front, circled: the mask that is taken; blue: {rest}"
    lines = textwrap.wrap(note, _LINE)
    with style.drawing():
        fig = style.figure(6.4, 4.05 + 0.15 * len(lines))
        axes = style.place(fig, 0.65, 0.55, 5.5, 3.0)
        axes.grid()
        axes.set_axisbelow(True)
        if others:
            axes.scatter(*zip(*others, strict=True), s=16, color=style.BLUE, alpha=0.35, lw=0, zorder=3)
        if points:
            xs, ys = zip(*points, strict=True)
            axes.step(xs, ys, where="post", color=style.ORANGE, lw=1.2, zorder=4)
            axes.scatter(xs, ys, s=30, color=style.ORANGE, zorder=5)
            if chosen is not None:
                axes.scatter(xs[chosen], ys[chosen], s=90, facecolor="none", edgecolor=style.INK, lw=1.2, zorder=6)
        if budget is not None:
            axes.axvline(budget, color=style.GREY, lw=1, ls="--", zorder=2)
        axes.margins(0.1, 0.14)
        axes.set(xlabel=cost, ylabel=score)
        axes.set_title("Front", size=style.TITLE, pad=8 + 12 * len(lines))
        axes.text(0, 1.02, "\n".join(lines), transform=axes.transAxes, size=style.SMALL, color=style.GREY, va="bottom")
        inch = fig.dpi
        axes.autoscale_view()  # labels stand where points will
        places = [axes.transData.transform(point) for point in points]
        heights = style.spread([y + 0.06 * inch for _, y in places], 0.13 * inch, -math.inf, math.inf)
        for number, ((x, _), height, label) in enumerate(zip(places, heights, labels, strict=True)):
            # The ring around the next point would lie on the label: it goes to the other side.
            left = chosen != number + 1 or places[chosen][0] - x > 0.25 * inch
            beside = 0.11 if number == chosen else 0.06  # its ring is wider
            shift = (-beside if left else 0.1) * inch
            height = height if left else places[number][1] - 0.15 * inch
            options = dict(ha="right" if left else "left", size=style.SMALL, color=style.INK, zorder=6)
            axes.annotate(label, (x + shift, height), xycoords="figure pixels", **options)
        return style.save(fig, path)
