"""Training curves: small multiples from the rows of a metrics.jsonl."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.pictures import style

_FIRST = ("loss", "loss_task", "loss_sparse", "miou", "connections", "lr")
_TITLES = {
    "loss": "loss",
    "loss_task": "task loss",
    "loss_sparse": "sparse loss",
    "miou": "mean IoU",
    "connections": "connections",
    "lr": "learning rate",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "oa": "overall accuracy",
    "macc": "mean accuracy",
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "kept": "kept fraction",
    "kept_soft": "kept fraction, soft masks",
    "dense_channels": "dense channels (share)",
    "tau": "τ",
    "lambda": "λ",
}
_NOT_CURVES = ("step", "epoch", "time", "seconds")
_EXACT = ("lr", "connections", "tau", "lambda")  # without noise: a smoothed line would only be wrong
_VALIDATION = ("val_", "val/", "valid_", "validation_")
VALUES = 3  # a validation of at most so many points is no curve: their values are written beside them
_FEW = 30  # a series of fewer points is drawn as it is, point by point

Series = tuple[np.ndarray, np.ndarray]


def draw_curves(rows: Iterable[Mapping[str, object]], path: str | os.PathLike, title: str | None = None) -> Path:
    """Draw one panel per quantity over the steps and return the path.

    Args:
        rows: each with 'step' and any numbers ('loss', 'lr', 'val_miou', …). 'val_x' shares the panel of 'x',
            marked point by point; other long series are drawn light, with a smoothed line on top. What is not
            a finite number leaves a gap. A step given twice (a resumed run) counts as given last.
        path: the file to write (.png, .svg, .pdf).
        title: a headline.

    Raises:
        UseError: the rows hold no numbers.
    """
    path = style.check_path(path)
    panels = _panels(list(rows))
    if not panels:
        raise UseError(f"{path}: no curves to draw, the metrics hold no numbers yet")
    across = min(len(panels), 3)
    down = math.ceil(len(panels) / across)
    head = 0.3 if title else 0.0
    width, height = across * 2.75 + 0.2, down * 2.05 + 0.3 + head
    with style.drawing():
        fig = style.figure(width, height)
        for k, (name, (train, validation)) in enumerate(panels.items()):
            bottom = height - head - (k // across + 1) * 2.05 + 0.28
            axes = style.place(fig, 0.6 + (k % across) * 2.75, bottom, 2.05, 1.4)
            _panel(axes, name, train, validation)
            low, high = _steps(panels)
            room = max(2.0, 0.03 * (high - low)) if high - low < 4 else 0.03 * (high - low)
            axes.set_xlim(low - room, high + room)  # the same for all, so that panels can be compared
            if k + across >= len(panels):
                axes.set_xlabel("step")
        if title:
            fig.text(0.2 / width, 1 - 0.14 / height, title, va="top", size=style.TITLE, weight="bold")
        return style.save(fig, path)


def smooth(values: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian average around each point (no lag, unlike a running mean); gaps have no weight."""
    from scipy.ndimage import gaussian_filter1d

    finite = np.isfinite(values)
    total = gaussian_filter1d(np.where(finite, values, 0.0), sigma, mode="constant")
    weight = gaussian_filter1d(finite.astype(float), sigma, mode="constant")
    return np.divide(total, weight, out=np.full(len(values), np.nan), where=weight > 1e-9)


def _panels(rows: list[Mapping[str, object]]) -> dict[str, tuple[Series | None, Series | None]]:
    """Quantity -> (training series, validation series), in the order of the panels."""
    quantities: dict[str, dict[float, float]] = {}
    for row in rows:
        if not _number(row.get("step")):
            continue
        for key, value in row.items():
            if key not in _NOT_CURVES and _number(value):
                quantities.setdefault(key, {})[float(row["step"])] = float(value)
    panels: dict[str, list[Series | None]] = {}
    for key, points in quantities.items():
        steps = np.array(sorted(points))
        values = np.array([points[step] for step in steps])
        if not np.isfinite(values).any():
            continue
        prefix = next((p for p in _VALIDATION if key.startswith(p)), "")
        panels.setdefault(key.removeprefix(prefix), [None, None])[bool(prefix)] = (steps, values)
    longest = max(map(len, quantities.values()), default=0)
    for series in panels.values():  # measured far less often than the rest: measured by a validation
        if series[1] is None and len(series[0][0]) * 4 <= longest:
            series.reverse()
    rank = lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)
    return {name: tuple(panels[name]) for name in sorted(panels, key=rank)}


def _steps(panels: Mapping[str, tuple[Series | None, Series | None]]) -> tuple[float, float]:
    """The first and the last step of all panels."""
    steps = np.concatenate([series[0] for pair in panels.values() for series in pair if series is not None])
    return float(steps.min()), float(steps.max())


def _number(value: object) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def _panel(axes, name: str, train: Series | None, validation: Series | None) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    magnitudes = [abs(v) for series in (train, validation) if series for v in series[1] if math.isfinite(v)]
    exponent = math.floor(math.log10(max(magnitudes))) if max(magnitudes) else 0
    exponent = 0 if -3 <= exponent < 5 else exponent
    if train is not None:
        steps, values = train[0], train[1] / 10.0**exponent
        if name in _EXACT:
            axes.plot(steps, values, color=style.BLUE, lw=1.4)
        elif len(steps) < _FEW:
            axes.plot(steps, values, color=style.BLUE, lw=1.2, marker="o", ms=3, label="training")
        else:
            axes.plot(steps, values, color=style.BLUE, lw=0.6, alpha=0.3)
            axes.plot(steps, smooth(values, len(steps) / 60), color=style.BLUE, lw=1.4, label="training")
    if validation is not None:
        steps, values = validation[0], validation[1] / 10.0**exponent
        few = len(steps) <= VALUES
        line = dict(color=style.ORANGE, lw=1.2, marker="o", ms=3.5, mec=style.PAPER, mew=0.5, zorder=4)
        line |= {"ls": ":"} if few else {}
        axes.plot(steps, values, **line, label="validation")
        below = train is not None and train[1][-1] / 10.0**exponent > values[-1]  # away from the other line
        last = dict(
            xytext=(0, -10 if below else 5), textcoords="offset points", ha="right", size=6.5, color=style.ORANGE
        )
        axes.annotate(f"{values[-1]:.3g}", (steps[-1], values[-1]), **last)
        for step, value in zip(steps[:-1], values[:-1], strict=True) if few else ():
            axes.annotate(f"{value:.3g}", (step, value), **{**last, "ha": "left"})
    title = _TITLES.get(name, name.replace("_", " "))
    axes.set_title(f"{title} (×1e{exponent})" if exponent else title)
    axes.grid()
    axes.margins(x=0.03, y=0.1)
    axes.ticklabel_format(axis="y", style="plain", useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if name == "connections":
        axes.set_ylim(0, max(magnitudes) * 1.08 or 1)
    if train is not None and validation is not None:
        axes.legend(loc="best", handlelength=1.2, borderpad=0.1, labelspacing=0.2)
