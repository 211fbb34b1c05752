"""Line charts as inline SVG: colours of the page's style, names on hover; no script."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsemask.pictures.curves import VALUES, smooth
from sparsemask.pictures.style import spread
from sparsemask.pictures.weights import connection_names
from sparsemask.report.html import escape
from sparsemask.report.run_data import number
from sparsemask.tables import UNITS

_FIRST = ("loss", "loss_task", "loss_sparse", "miou", "connections", "lr")
_TITLES = {"miou": "mean IoU", "lr": "learning rate", "loss_task": "task loss", "loss_sparse": "sparse loss"}
_TITLES |= {"psnr": "PSNR (dB)", "ssim": "SSIM", "kept": "kept fraction", "kept_soft": "kept fraction, soft masks"}
_TITLES |= {"oa": "overall accuracy", "macc": "mean accuracy"}
_TITLES |= {"top1": "top-1 accuracy", "top5": "top-5 accuracy"}
_TITLES |= {"expected_macs": "expected multiply-adds", "expected_ms": "expected milliseconds"}
_TITLES |= {"dense_channels": "dense channels (share)", "tau": "τ", "lambda": "λ"}
_STEADY = ("lr", "connections")  # without noise
_FEW, _MOST = 30, 160  # points that are drawn one by one, and points that a line of a page needs at most
_NAMED = 20  # connections named at the end of their lines

Series = tuple[np.ndarray, np.ndarray]  # steps, values


@dataclass(frozen=True)
class Frame:
    """Position of a plot in its drawing, in user units, and the ranges it shows."""

    left: float
    top: float
    right: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, step: float) -> float:
        """The x coordinate of a step."""
        return self.left + (step - self.x[0]) / (self.x[1] - self.x[0]) * (self.right - self.left)

    def up(self, value: float) -> float:
        """The y coordinate of a value."""
        return self.bottom - (value - self.y[0]) / (self.y[1] - self.y[0]) * (self.bottom - self.top)

    def path(self, steps: np.ndarray, values: np.ndarray) -> str:
        """A line through the points; gaps where values are not finite."""
        parts, pen = [], "M"
        for step, value in zip(steps, values, strict=True):
            if not math.isfinite(value):
                pen = "M"
                continue
            parts.append(f"{pen}{self.across(step):.1f} {self.up(value):.1f}")
            pen = "L"
        return "".join(parts)

    def axes(self, count: int = 4) -> str:
        """Grid lines and numbers."""
        out = []
        marks = ticks(*self.y, count)
        for value, text in zip(marks, _labels(marks), strict=True):
            at = self.up(value)
            out.append(f'<line class="grid" x1="{self.left}" x2="{self.right}" y1="{at:.1f}" y2="{at:.1f}"/>')
            out.append(
                f'<text class="tick" x="{self.left - 6}" y="{at:.1f}" dy=".35em" text-anchor="end">{text}</text>'
            )
        for value in ticks(*self.x, count):
            at = self.across(value)
            out.append(
                f'<text class="tick below" x="{at:.1f}" y="{self.bottom + 7}" text-anchor="middle">{value:g}</text>'
            )
        return "".join(out)


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Round numbers in [low, high], about `count` of them."""
    step = (high - low) / count
    size = 10.0 ** math.floor(math.log10(step))
    step = next(size * k for k in (1, 2, 2.5, 5, 10) if size * k >= step * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [k * step for k in range(first, math.floor(high / step + 1e-9) + 1)]


def _labels(marks: Sequence[float]) -> list[str]:
    """The numbers with as many digits as it takes to tell them apart; large ones in millions or billions."""
    unit, factor = next(((f" {u}", f) for u, f in UNITS if max(map(abs, marks)) >= f >= 1e6), ("", 1.0))
    marks = [v / factor for v in marks]
    digits = next((d for d in range(3, 12) if len({f"{v:.{d}g}" for v in marks}) == len(marks)), 12)
    return [f"{v:.{digits}g}{unit}" if abs(v) > 1e-12 else "0" for v in marks]


def curves(rows: Sequence[dict]) -> list[tuple[str, str]]:
    """(title, SVG) of each quantity of the metrics, the known ones first; 'val_x' is drawn with 'x'."""
    quantities: dict[str, dict[str, dict[float, float]]] = {}
    for row in rows:
        for key, value in row.items():
            if key in ("step", "epoch", "time", "seconds") or number(value) is None:
                continue
            kind = "validation" if key.startswith("val_") else "training"
            quantities.setdefault(key.removeprefix("val_"), {}).setdefault(kind, {})[float(row["step"])] = float(value)
    rank = lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)
    panels, every = [], [step for kinds in quantities.values() for points in kinds.values() for step in points]
    across = _span(np.array(every)) if every else (0.0, 1.0)  # the same for all, so that panels can be compared
    for name in sorted(quantities, key=rank):
        series = {}
        for kind, points in quantities[name].items():
            steps = np.array(sorted(points))
            series[kind] = steps, np.array([points[s] for s in steps])
        panels.append((_TITLES.get(name, name.replace("_", " ")), _panel(name, series, across)))
    return panels


def _panel(name: str, series: dict[str, Series], across: tuple[float, float]) -> str:
    values = np.concatenate([v for _, v in series.values()])
    low, high = float(values.min()), float(values.max())
    low = 0.0 if name in _STEADY else low
    margin = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    frame = Frame(52, 12, 308, 158, across, (low if low == 0 else low - margin, high + margin))
    out = [frame.axes()]
    if "training" in series:
        steps, values = _thinned(*series["training"])
        if name in _STEADY or len(steps) < _FEW:
            out.append(f'<path class="line train" d="{frame.path(steps, values)}"/>')
        else:
            out.append(f'<path class="line train raw" d="{frame.path(steps, values)}"/>')
            smoothed = smooth(values, len(values) / 60)
            out.append(f'<path class="line train" d="{frame.path(steps, smoothed)}"/>')
    if "validation" in series:
        steps, values = _thinned(*series["validation"])
        few = len(steps) <= VALUES
        out.append(f'<path class="line valid{" few" if few else ""}" d="{frame.path(steps, values)}"/>')
        for k, (step, value) in enumerate(zip(steps, values, strict=True) if few else ()):  # their values, off the line
            x, up = frame.across(step), frame.up(value)
            last = k == len(steps) - 1
            below = last and k > 0 and value < values[k - 1]
            side = "end" if last or x > frame.left + 50 else "start"
            at = f'x="{x:.1f}" y="{up + (16 if below else -8):.1f}" text-anchor="{side}"'
            out.append(f'<text class="tick valid" {at}>{value:.3g}</text>')
        for step, value in zip(steps, values, strict=True):
            at = f'cx="{frame.across(step):.1f}" cy="{frame.up(value):.1f}"'
            out.append(f'<circle class="valid" {at} r="3.5"><title>step {step:g}: {value:.4g}</title></circle>')
    description = "; ".join(
        f"{kind} from {v[0]:.3g} at step {s[0]:g} to {v[-1]:.3g} at step {s[-1]:g}, "
        f"between {v.min():.3g} and {v.max():.3g}"
        for kind, (s, v) in series.items()
    )
    return (
        f'<svg class="panel" viewBox="0 0 320 180" role="img" aria-label="{escape(description)}">{"".join(out)}</svg>'
    )


def last_value(rows: Sequence[dict], name: str) -> float | None:
    """The newest number of a quantity."""
    return next((row[name] for row in reversed(rows) if number(row.get(name)) is not None), None)


def plain_names(count: int) -> list[tuple[str, str]]:
    """(kind, name) of every connection, such as ('encoder', 'E3→D5')."""
    return [(kind, re.sub(r"[${}_]", "", label)) for kind, label in connection_names(count)]


def weight_history(steps: np.ndarray, halves: np.ndarray, thres: float) -> str:
    """Every connection's weight over the search; a line and its name are highlighted on hover."""
    names = plain_names(halves.shape[1])
    kept = halves[-1] > thres
    frame = Frame(56, 44, 830 if 0 < kept.sum() <= _NAMED else 900, 520, _span(steps), (0, 1))
    out = [frame.axes(5)]
    out.append(
        f'<text class="tick label" x="{(frame.left + frame.right) / 2}" y="560" text-anchor="middle">step</text>'
    )
    few, lines = _thinned(steps, halves)
    for k in sorted(range(len(names)), key=lambda k: kept[k]):
        (kind, name), path = names[k], frame.path(few, lines[:, k])
        end = f"{halves[-1, k]:.3f}" if kept[k] else f"{halves[-1, k]:.3g}, dropped"
        out.append(
            f'<g class="w {kind}{"" if kept[k] else " gone"}"><path class="hit" d="{path}"/>'
            f'<path class="line" d="{path}"/>'
            f'<text class="name" x="{frame.left + 4}" y="26">{name}: {end}</text></g>'
        )
    at = frame.up(thres)
    out.append(f'<line class="thres" x1="{frame.left}" x2="{frame.right}" y1="{at:.1f}" y2="{at:.1f}"/>')
    if 0 < kept.sum() <= _NAMED:
        out.extend(_ends(frame, halves[-1], np.flatnonzero(kept), names))
    description = f"{kept.sum()} of {len(names)} connections end above {thres:g}: " + ", ".join(
        f"{names[k][1]} {halves[-1, k]:.2f}" for k in np.flatnonzero(kept)
    )
    return (
        f'<svg class="history" viewBox="0 0 920 570" role="img" aria-label="{escape(description)}">{"".join(out)}</svg>'
    )


def _ends(frame: Frame, last: np.ndarray, kept: np.ndarray, names: list[tuple[str, str]]) -> list[str]:
    heights = [frame.up(last[k]) for k in kept]
    out = []
    for k, end, at in zip(kept, heights, spread(heights, 17, frame.top - 10, frame.bottom), strict=True):
        kind, name = names[k]
        tie = f"M{frame.right} {end:.1f}L{frame.right + 14} {at:.1f}"
        out.append(f'<g class="end {kind}"><path class="tie" d="{tie}"/>')
        out.append(f'<text x="{frame.right + 18}" y="{at:.1f}" dy=".35em">{name}</text></g>')
    return out


def _thinned(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most as many points as a page can show, the first and the last among them."""
    if len(steps) <= _MOST:
        return steps, values
    chosen = np.unique(np.linspace(0, len(steps) - 1, _MOST).round().astype(int))
    return steps[chosen], values[chosen]


def _span(steps: np.ndarray) -> tuple[float, float]:
    low, high = float(steps.min()), float(steps.max())
    return (low, high) if high > low else (low - 1, high + 1)
