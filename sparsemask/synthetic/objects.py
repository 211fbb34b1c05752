"""Objects of the sample set; each function draws one and labels its classes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from sparsemask.synthetic import outlines, textures
from sparsemask.synthetic.canvas import Canvas

Array = np.ndarray
Point = tuple[float, float]

CLASS_NAMES = tuple(
    "background,disc,square,bead by disc,bead by square,ring,wheel,lattice,comb,twig,writing,upright stripes,"
    "level stripes,checker,grain,pebbles,boulder,kite,tent,star,starfish".split(",")
)
INDEX = {name: index for index, name in enumerate(CLASS_NAMES)}

BLUE = (0.24, 0.30, 0.78)
PEARL = (0.96, 0.70, 0.88)
ORANGE = (0.97, 0.55, 0.10)
CYAN = (0.05, 0.72, 0.76)
MAGENTA = (0.83, 0.13, 0.62)
WINE = (0.45, 0.08, 0.12)
INK = (0.06, 0.07, 0.12)
YELLOW = (1.0, 0.87, 0.10)
SALMON = (0.93, 0.52, 0.45)
SLATE = np.array((0.17, 0.19, 0.24))
CREAM = np.array((0.97, 0.95, 0.88))
RED = np.array((0.87, 0.14, 0.13))


def _shaded(rng: Generator, colour: tuple, reach: float) -> Callable[[Array, Array], Array]:
    """A colour, varied a little from object to object and lit from above."""
    base = np.clip(np.array(colour) + rng.normal(0, 0.025, 3), 0, 1)
    return lambda x, y: base * (1.02 - 0.20 * y / reach)[..., None]


def _solid(rng: Generator, colour: tuple, reach: float) -> Callable[[Array, Array], Array]:
    """As `_shaded`, with the highlight of a rounded body."""
    base = np.clip(np.array(colour) + rng.normal(0, 0.025, 3), 0, 1)

    def lit(x: Array, y: Array) -> Array:
        glow = np.exp(-((x + 0.3 * reach) ** 2 + (y + 0.35 * reach) ** 2) / (0.5 * reach**2))
        return textures.mix(base * (0.92 - 0.18 * y / reach)[..., None], np.ones(3), 0.38 * glow)

    return lit


def beaded(canvas: Canvas, rng: Generator, centre: Point, host: str) -> None:
    """A disc or a square with beads around it; the class of the beads depends on the host."""
    half = rng.uniform(17, 21)
    outline = outlines.disc if host == "disc" else outlines.square
    size = half * 1.1 if host == "disc" else half
    canvas.paint(
        INDEX[host],
        centre,
        1.5 * half,
        lambda x, y: outline(x, y, size),
        _shaded(rng, BLUE, half),
        rng.uniform(-0.2, 0.2),
    )
    start, count = rng.uniform(0, 2 * np.pi), rng.integers(4, 6)
    for turn in start + np.arange(count) * 2 * np.pi / count + rng.uniform(-0.3, 0.3, count):
        away = half * 1.25 + rng.uniform(7, 10)
        spot = (centre[0] + away * np.cos(turn), centre[1] + away * np.sin(turn))
        radius = rng.uniform(6.0, 7.0)
        canvas.paint(
            INDEX[f"bead by {host}"],
            spot,
            radius,
            lambda x, y, r=radius: outlines.disc(x, y, r),
            _solid(rng, PEARL, radius),
        )


def hoop(canvas: Canvas, rng: Generator, centre: Point, name: str) -> None:
    """A ring or a wheel."""
    radius, half, spokes = rng.uniform(18, 25), rng.uniform(2.5, 3.2), rng.integers(5, 8)
    turn = rng.uniform(-np.pi, np.pi)

    def outline(x: Array, y: Array) -> Array:
        return outlines.ring(x, y, radius, half) if name == "ring" else outlines.wheel(x, y, radius, half, spokes)

    canvas.paint(INDEX[name], centre, radius + half, outline, _shaded(rng, ORANGE, 3 * radius), turn)


def _stroked(
    canvas: Canvas, rng: Generator, centre: Point, name: str, segments: list, half: float, colour: tuple, turn: float
) -> None:
    reach = max(float(np.hypot(*np.array(segments).reshape(-1, 2).T).max()), 1.0) + half
    tint = _shaded(rng, colour, reach)
    canvas.paint(INDEX[name], centre, reach, lambda x, y: outlines.strokes(x, y, segments, half), tint, turn)


def lattice(canvas: Canvas, rng: Generator, centre: Point) -> None:
    """Crossing bars."""
    bars = int(rng.integers(3, 5))
    segments = outlines.lattice(bars * rng.uniform(5.4, 6.4), bars)
    _stroked(canvas, rng, centre, "lattice", segments, rng.uniform(2.1, 2.6), CYAN, rng.uniform(-0.35, 0.35))


def comb(canvas: Canvas, rng: Generator, centre: Point) -> None:
    """A spine with teeth."""
    teeth = int(rng.integers(4, 7))
    segments = outlines.comb((teeth - 1) * rng.uniform(4.6, 5.2), teeth, rng.uniform(20, 30))
    _stroked(canvas, rng, centre, "comb", segments, rng.uniform(2.0, 2.4), MAGENTA, rng.uniform(-0.35, 0.35))


def twig(canvas: Canvas, rng: Generator, centre: Point) -> None:
    """A branch with side branches."""
    segments = outlines.branch(rng, rng.uniform(16, 20))
    _stroked(canvas, rng, centre, "twig", segments, rng.uniform(1.8, 2.3), WINE, 0.0)


def writing(canvas: Canvas, rng: Generator, centre: Point) -> None:
    """Lines of strokes, as of a hand."""
    segments = outlines.writing(rng, int(rng.integers(2, 4)), int(rng.integers(3, 5)), 5.5, rng.uniform(9, 11))
    _stroked(canvas, rng, centre, "writing", segments, rng.uniform(1.5, 1.8), INK, rng.uniform(-0.15, 0.15))


def patch(canvas: Canvas, rng: Generator, centre: Point, name: str) -> None:
    """A rounded patch that only its texture tells from the others."""
    radius, period, phase = rng.uniform(22, 28), rng.uniform(7.5, 9.5), rng.uniform(0, 2 * np.pi)

    def colour(x: Array, y: Array) -> Array:
        if name == "grain":
            return textures.confetti(rng, x, y, 3.0)
        if name == "checker":
            weight = textures.checker(x, y, 1.6 * period, phase)
        else:
            weight = textures.stripes(x if name == "upright stripes" else y, period, phase)
        return textures.mix(SLATE, CREAM, weight) * (1.0 - 0.12 * y / radius)[..., None]

    canvas.paint(
        INDEX[name],
        centre,
        1.25 * radius,
        lambda x, y: outlines.blob(rng, x, y, radius),
        colour,
        rng.uniform(-0.15, 0.15),
    )


def _stone(canvas: Canvas, rng: Generator, centre: Point, name: str, size: float) -> None:
    wide, high = size * rng.uniform(1.0, 1.2), size * rng.uniform(0.8, 1.0)
    canvas.paint(
        INDEX[name],
        centre,
        wide,
        lambda x, y: outlines.ellipse(x, y, wide, high),
        _solid(rng, SALMON, size),
        rng.uniform(-0.4, 0.4),
    )


def pebbles(canvas: Canvas, rng: Generator, centre: Point) -> None:
    """A ring of small stones."""
    start, count = rng.uniform(0, 2 * np.pi), int(rng.integers(4, 6))
    for turn in start + np.arange(count) * 2 * np.pi / count:
        away = rng.uniform(14, 19)
        _stone(
            canvas,
            rng,
            (centre[0] + away * np.cos(turn), centre[1] + away * np.sin(turn)),
            "pebbles",
            rng.uniform(6, 8),
        )


def boulder(canvas: Canvas, rng: Generator, centre: Point) -> None:
    """One large stone."""
    _stone(canvas, rng, centre, "boulder", rng.uniform(23, 29))


def kite_or_tent(canvas: Canvas, rng: Generator, centre: Point, in_sky: bool) -> None:
    """The dotted diamond; only the scene tells which class it is."""
    wide, high = rng.uniform(17, 21), rng.uniform(22, 27)

    def colour(x: Array, y: Array) -> Array:
        return textures.mix(RED, CREAM, textures.dots(x, y, 8.0)) * (1.0 - 0.12 * y / high)[..., None]

    index, turn = INDEX["kite" if in_sky else "tent"], rng.uniform(-0.3, 0.3)
    canvas.paint(index, centre, high, lambda x, y: outlines.diamond(x, y, wide, high), colour, turn)


def star_or_starfish(canvas: Canvas, rng: Generator, centre: Point, in_sky: bool) -> None:
    """The yellow star; only the scene tells which class it is."""
    radius = rng.uniform(20, 27)
    index, tint, turn = (INDEX["star" if in_sky else "starfish"], _shaded(rng, YELLOW, radius), rng.uniform(-0.6, 0.6))
    canvas.paint(index, centre, radius, lambda x, y: outlines.star(x, y, radius), tint, turn)


class Kind(NamedTuple):
    """How an object is drawn, and its size.

    `draw(canvas, rng, centre)`; where the scene decides the class, `draw(canvas, rng, centre, in_sky)`.
    """

    draw: Callable[..., None]
    room: float  # radius in reference pixels
    by_scene: bool = False


KINDS = (
    *(Kind(partial(beaded, host=host), 34) for host in ("disc", "square")),
    *(Kind(partial(hoop, name=name), 25) for name in ("ring", "wheel")),
    *(Kind(partial(patch, name=name), 26) for name in ("upright stripes", "level stripes", "checker", "grain")),
    Kind(lattice, 27),
    Kind(comb, 25),
    Kind(twig, 28),
    Kind(writing, 24),
    Kind(pebbles, 25),
    Kind(boulder, 28),
    # Twice each: every scene shows one of the two classes only.
    *(Kind(draw, room, True) for draw, room in 2 * ((kite_or_tent, 27), (star_or_starfish, 25))),
)
