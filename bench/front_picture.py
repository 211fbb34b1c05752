"""Draw milliseconds against mean IoU: searched, named and random masks and hand-made decoders.

    python bench/front_picture.py runs-decoders/decoders.json --out docs/images/front.png --cost 256/1
    python bench/front_picture.py bench/data/mask_table_sample.json.gz --out table.png --cost 97/1 \
        --found runs-search-worth/found.json

Reads the figures of bench/decoders.py, or a table of bench/mask_table.py (all its masks, the named ones with names), to
which bench/search_worth.py adds the masks that searches found.
Up and left is better; the line is the front of our masks, random ones left out. Bars show the range of the seeds.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench.mask_truth import load_truth
from sparsemask.errors import UseError, command
from sparsemask.files import read_json
from sparsemask.pictures import style

KINDS = {
    "random": ("random masks", style.GREY, "o", 18),
    "named": ("masks made by hand", style.SKY, "s", 34),
    "searched": ("searched masks", style.ORANGE, "o", 42),
    "hand-made": ("hand-made decoders", style.BLUE, "D", 36),
}


@dataclass(frozen=True)
class Point:
    """A network: its cost and its scores, one a seed."""

    name: str
    kind: str
    cost: float
    scores: tuple[float, ...]

    @property
    def score(self) -> float:
        """Mean of the seeds."""
        return float(np.mean(self.scores))


def read_points(path: Path, cost: str | None, form: str) -> tuple[list[Point], str, str]:
    """Points of a file, the words for their cost, and for the set.

    Args:
        path: decoders.json, or a table.
        cost: "SIDE/THREADS", "multiply_adds", or None for the first kind of milliseconds.
        form: "eager" or "compiled", of decoders.json.

    Raises:
        UseError: the file has no such costs.
    """
    if path.name.endswith(".gz"):
        truth = load_truth(path)
        cost = cost or next((key for key in truth.costs if "/" in key), "multiply_adds")
        costs = truth.cost(cost)
        points = [
            Point(name or "", "named" if name else "random", float(c), tuple(scores))
            for name, c, scores in zip(truth.names, costs, truth.miou.tolist(), strict=True)
        ]
        return _scaled(points, cost), _words(cost, "predicted"), truth.name
    figures = read_json(path)
    networks = {name: figure for name, figure in figures["networks"].items() if figure["miou"]}
    sizes = [size for figure in networks.values() for size in figure["ms"]]
    cost = cost or (sizes[0] if sizes else "multiply_adds")
    points = []
    for name, figure in networks.items():
        value = figure["multiply_adds"] if cost == "multiply_adds" else figure["ms"].get(cost, {}).get(form)
        if value is None:
            raise UseError(f"{path}: '{name}' has no milliseconds '{cost}', {form}; known: {', '.join(figure['ms'])}")
        points.append(Point(name, figure["kind"], float(value), tuple(figure["miou"])))
    return _scaled(points, cost), _words(cost, form), figures["set"]


def with_found(points: list[Point], path: Path, table: str, cost: str) -> list[Point]:
    """A table's masks and those that searches found, of bench/search_worth.py, all at the milliseconds predicted there.

    Raises:
        UseError: of another table, or with other costs.
    """
    found = read_json(path)
    if (found["set"], found["cost"], len(found["table_ms"])) != (table, cost, len(points)):
        raise UseError(f"{path}: of the table '{found['set']}' at {found['cost']}, not of '{table}' at {cost}")
    own = [Point("", "searched", float(row["ms"]), tuple(row["miou"])) for row in found["found"]]
    return [Point(p.name, p.kind, ms, p.scores) for p, ms in zip(points, found["table_ms"], strict=True)] + own


def _scaled(points: list[Point], cost: str) -> list[Point]:
    unit = 1e9 if cost == "multiply_adds" else 1.0
    return [Point(p.name, p.kind, p.cost / unit, p.scores) for p in points]


def _words(cost: str, what: str) -> str:
    if cost == "multiply_adds":
        return "G multiply-adds"
    side, threads = cost.split("/")
    return f"milliseconds at {side}×{side}, {threads} thread{'s' if threads != '1' else ''} ({what})"


def front_of(points: list[Point]) -> list[Point]:
    """Points that no other beats in both, by rising cost."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.score)):
        if not front or point.score > front[-1].score:
            front.append(point)
    return front


def draw(points: list[Point], words: str, title: str, path: Path) -> Path:
    """Draw the points and write the picture."""
    with style.drawing():
        fig = style.figure(7.2, 4.6)
        axes = style.place(fig, 0.65, 0.6, 6.3, 3.4)
        axes.grid()
        axes.set_axisbelow(True)
        for kind, (label, colour, marker, size) in KINDS.items():
            members = [point for point in points if point.kind == kind]
            if not members:
                continue
            xs, ys = [p.cost for p in members], [p.score for p in members]
            alpha = 0.45 if kind == "random" else 1.0
            axes.scatter(xs, ys, s=size, color=colour, marker=marker, alpha=alpha, lw=0, label=label, zorder=4)
            if kind != "random":
                low = [p.score - min(p.scores) for p in members]
                high = [max(p.scores) - p.score for p in members]
                axes.errorbar(xs, ys, (low, high), fmt="none", ecolor=colour, elinewidth=0.8, alpha=0.7, zorder=3)
        ours = front_of([p for p in points if p.kind in ("named", "searched")])
        if any(p.kind == "searched" for p in ours):
            line = dict(where="post", color=style.ORANGE, lw=1.1, alpha=0.8, zorder=2)
            axes.step([p.cost for p in ours], [p.score for p in ours], **line)
        axes.margins(0.12, 0.12)
        axes.set(xlabel=words, ylabel="mean IoU")
        axes.set_title(title, size=style.TITLE, pad=22)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=4, handletextpad=0.2, borderaxespad=0.1)
        _label(fig, axes, points)
        return style.save(fig, path)


def _label(fig, axes, points: list[Point]) -> None:
    """Write the names where each covers the fewest points and names: beside, above or below its point."""
    from matplotlib.patheffects import withStroke

    halo = withStroke(linewidth=2.5, foreground=style.PAPER)
    fig.canvas.draw()
    renderer = fig.canvas.get_renderer()
    centres = axes.transData.transform([(p.cost, p.score) for p in points])
    frame, taken = axes.get_window_extent(renderer), []
    offsets = [
        (dx, dy, across, up)
        for reach in (7, 15, 26)
        for dx, dy, across, up in (
            (reach, 0, "left", "center"),
            (-reach, 0, "right", "center"),
            (0, reach, "center", "bottom"),
            (0, -reach, "center", "top"),
            (reach, reach, "left", "bottom"),
            (-reach, reach, "right", "bottom"),
            (reach, -reach, "left", "top"),
            (-reach, -reach, "right", "top"),
        )
    ]
    for index, point in enumerate(points):
        if not point.name or point.kind == "random":
            continue
        best = None
        for dx, dy, across, up in offsets:
            text = axes.annotate(
                point.name,
                (point.cost, point.score),
                (dx, dy),
                textcoords="offset points",
                ha=across,
                va=up,
                size=style.SMALL,
                color=style.INK,
                zorder=6,
                path_effects=[halo],
            )
            box = text.get_window_extent(renderer).padded(1)
            covered = sum(box.contains(*c) for i, c in enumerate(centres) if i != index and points[i].name)
            crowd = sum(box.contains(*c) for c in centres)
            outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
            badness = 100 * outside + 10 * sum(box.overlaps(other) for other in taken) + 5 * covered + crowd
            badness += np.hypot(dx, dy) / 100
            if best is None or badness < best[0]:
                if best is not None:
                    best[1].remove()
                best = (badness, text, box)
            else:
                text.remove()
        taken.append(best[2])


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", type=Path, help="decoders.json of bench/decoders.py, or a table of masks")
    parser.add_argument("--out", type=Path, default=Path("front.png"))
    parser.add_argument("--cost", help="SIDE/THREADS, or multiply_adds; default: the first milliseconds")
    parser.add_argument("--form", choices=("eager", "compiled"), default="eager")
    parser.add_argument("--title")
    parser.add_argument("--found", type=Path, help="found.json of bench/search_worth.py, beside a table")
    options = parser.parse_args(argv)
    points, words, name = read_points(options.figures, options.cost, options.form)
    if options.found:
        points = with_found(points, options.found, name, options.cost)
    title = options.title or {"sample": "Embedded sample set", "voc": "PASCAL VOC 2012, sample"}.get(name, name)
    print(draw(points, words, title, options.out))


if __name__ == "__main__":
    sys.exit(command(main)())
