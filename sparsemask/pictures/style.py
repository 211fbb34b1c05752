"""Common style of all drawings: colours, sizes, making and writing of figures.

Figures never pass through pyplot, and the user's matplotlib settings are neither used nor changed.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sparsemask.errors import UseError, choose
from sparsemask.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart with every common form of colour blindness.
BLUE, ORANGE, GREEN = "#0072B2", "#D55E00", "#009E73"
PURPLE, AMBER, SKY = "#A9558B", "#E69F00", "#56B4E9"

INK, GREY, PALE, PAPER = "#222222", "#6E6E6E", "#D9D9D9", "#FFFFFF"
HEAT = "Blues"  # zero is the paper's white, so that an empty cell looks empty

TITLE, LABEL, SMALL = 11, 9, 7.5
FORMATS = ("png", "svg", "pdf")

_SETTINGS = {
    "figure.dpi": 150,
    "figure.facecolor": PAPER,
    "savefig.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.labelsize": LABEL,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": LABEL,
    "axes.titleweight": "bold",
    "font.family": "DejaVu Sans",
    "font.size": LABEL,
    "grid.color": "#ECECEC",
    "hatch.linewidth": 0.6,
    "legend.fontsize": SMALL,
    "legend.frameon": False,
    "mathtext.fontset": "dejavusans",
    "svg.hashsalt": "sparsemask",  # the same drawing gives the same file
    "text.color": INK,
    "xtick.color": GREY,
    "xtick.labelcolor": INK,
    "xtick.labelsize": SMALL,
    "ytick.color": GREY,
    "ytick.labelcolor": INK,
    "ytick.labelsize": SMALL,
}


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Inside, this module's settings over matplotlib's defaults; the user's settings are restored afterwards."""
    import matplotlib

    defaults = {key: value for key, value in matplotlib.rcParamsDefault.items() if key != "backend"}
    with matplotlib.rc_context({**defaults, **_SETTINGS}):
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure of `width` × `height` inches on the Agg canvas."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    return figure


def sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure and one bare axes over all of it, in inches from the lower left corner."""
    fig = figure(width, height)
    axes = fig.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(0, height))
    axes.axis("off")
    return fig, axes


def place(fig: Figure, left: float, bottom: float, width: float, height: float) -> Axes:
    """New axes at a position in inches."""
    across, up = fig.get_size_inches()
    return fig.add_axes((left / across, bottom / up, width / across, height / up))


def save(fig: Figure, path: str | os.PathLike) -> Path:
    """Write the figure atomically in the format of the path's suffix (png, svg, pdf); return the path.

    Raises:
        UseError: another suffix.
    """
    path = check_path(path)
    form = path.suffix[1:].lower()
    data = io.BytesIO()
    undated = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    fig.savefig(data, format=form, dpi=150, metadata=undated[form])
    write_bytes(path, data.getvalue())
    return path


def check_path(path: str | os.PathLike) -> Path:
    """Return the path if its suffix names a format we write; UseError otherwise."""
    path = Path(path)
    if not path.suffix:
        raise UseError(f"{path}: a picture's file name must end in one of .{', .'.join(FORMATS)}")
    choose(path.suffix[1:].lower(), FORMATS, "picture format")
    return path


def spread(targets: list[float], gap: float, low: float, high: float) -> list[float]:
    """Positions near the targets, in their order, at least `gap` apart, in [low, high] if they fit."""
    order = sorted(range(len(targets)), key=targets.__getitem__)
    groups: list[list[float]] = []  # [centre of the block, number of members]
    for index in order:
        groups.append([targets[index], 1])
        while True:
            centre, size = groups[-1]
            half = (size - 1) * gap / 2
            groups[-1][0] = centre = min(max(centre, low + half), max(high - half, low + half))
            if len(groups) < 2 or centre - half - gap >= groups[-2][0] + (groups[-2][1] - 1) * gap / 2:
                break
            before = groups.pop(-2)
            groups[-1] = [(centre * size + before[0] * before[1]) / (size + before[1]), size + before[1]]
    placed = [centre + (k - (size - 1) / 2) * gap for centre, size in groups for k in range(int(size))]
    result = [0.0] * len(targets)
    for index, position in zip(order, placed, strict=True):
        result[index] = position
    return result
