"""Outlines of the sample set's objects as signed distances (negative inside), in reference pixels.

Drawing from distances is exact at any size and needs no drawing library, whose anti-aliasing changes between
versions. Each function takes the coordinates `x`, `y` (H, W) in the object's own frame, centred on it.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

Array = np.ndarray
Segment = tuple[float, float, float, float]


def disc(x: Array, y: Array, radius: float) -> Array:
    """A full disc."""
    return np.hypot(x, y) - radius


def square(x: Array, y: Array, half: float, corner: float = 2.0) -> Array:
    """A square of side 2 * `half` with rounded corners."""
    across, down = np.abs(x) - half + corner, np.abs(y) - half + corner
    outside = np.hypot(np.maximum(across, 0), np.maximum(down, 0))
    return outside + np.minimum(np.maximum(across, down), 0) - corner


def ellipse(x: Array, y: Array, wide: float, high: float) -> Array:
    """An ellipse with half axes `wide`, `high`; the distance is exact on its outline only."""
    level = np.hypot(x / wide, y / high)
    slope = np.hypot(x / wide**2, y / high**2)
    return level * (level - 1) / np.maximum(slope, 1e-9) - (slope < 1e-9) * min(wide, high)


def blob(rng: Generator, x: Array, y: Array, radius: float) -> Array:
    """A rounded irregular patch of mean `radius`."""
    angle = np.arctan2(y, x)
    edge = np.ones_like(x)
    for waves in (2, 3, 4):
        edge += rng.uniform(0.03, 0.09) * np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
    return np.hypot(x, y) - radius * edge


def star(x: Array, y: Array, radius: float, points: int = 5, waist: float = 0.42) -> Array:
    """A star whose inner corners lie at `waist` * `radius`."""
    half = np.pi / points
    angle = np.abs((np.arctan2(x, -y) + half) % (2 * half) - half)
    across, along = np.hypot(x, y) * np.sin(angle), np.hypot(x, y) * np.cos(angle)
    # One edge of the star, from its tip to the inner corner, is a straight line in this folded frame.
    inner = np.array([waist * radius * np.sin(half), waist * radius * np.cos(half)])
    edge = np.array([inner[0], inner[1] - radius])
    normal = np.array([-edge[1], edge[0]]) / np.hypot(*edge)
    return across * normal[0] + (along - radius) * normal[1]


def diamond(x: Array, y: Array, wide: float, high: float) -> Array:
    """A rhombus with half diagonals `wide`, `high`."""
    return (np.abs(x) / wide + np.abs(y) / high - 1) * wide * high / np.hypot(wide, high)


def strokes(x: Array, y: Array, segments: list[Segment], half: float) -> Array:
    """Union of round-ended strokes of width 2 * `half` along segments (x0, y0, x1, y1)."""
    nearest = np.full_like(x, np.inf)
    for x0, y0, x1, y1 in segments:
        dx, dy = x1 - x0, y1 - y0
        fraction = np.clip(((x - x0) * dx + (y - y0) * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
        nearest = np.minimum(nearest, (x - x0 - fraction * dx) ** 2 + (y - y0 - fraction * dy) ** 2)
    return np.sqrt(nearest) - half


def ring(x: Array, y: Array, radius: float, half: float) -> Array:
    """A ring: a circle drawn with a stroke of width 2 * `half`."""
    return np.abs(np.hypot(x, y) - radius) - half


def wheel(x: Array, y: Array, radius: float, half: float, spokes: int) -> Array:
    """A ring with `spokes` straight spokes."""
    turns = np.arange(spokes) * 2 * np.pi / spokes
    lines = [(0.0, 0.0, radius * np.cos(t), radius * np.sin(t)) for t in turns]
    return np.minimum(ring(x, y, radius, half), strokes(x, y, lines, half))


def lattice(reach: float, bars: int) -> list[Segment]:
    """Segments of a square grid of `bars` x `bars` bars, 2 * `reach` wide."""
    positions = np.linspace(-reach, reach, bars)
    return [(p, -reach, p, reach) for p in positions] + [(-reach, p, reach, p) for p in positions]


def comb(reach: float, teeth: int, length: float) -> list[Segment]:
    """Segments of a comb: a bar 2 * `reach` wide and `teeth` teeth of `length` below it."""
    top = -length / 2
    return [(-reach, top, reach, top)] + [(p, top, p, top + length) for p in np.linspace(-reach, reach, teeth)]


def branch(rng: Generator, length: float, depth: int = 3) -> list[Segment]:
    """Segments of a twig that forks `depth` times and grows upwards; its middle is near the origin."""
    grown: list[Segment] = []

    def grow(x: float, y: float, angle: float, reach: float, left: int) -> None:
        end = (x + reach * np.sin(angle), y - reach * np.cos(angle))
        grown.append((x, y, *end))
        if left:
            for side in (-1, 1):
                grow(*end, angle + side * rng.uniform(0.4, 0.7), reach * rng.uniform(0.66, 0.82), left - 1)

    grow(0.0, 1.05 * length, rng.uniform(-0.15, 0.15), length * 0.85, depth)
    return grown


# A glyph is a few strokes between the points of a 2 x 3 grid, numbered row by row from the top left.
_GLYPHS = (
    (0, 4, 4, 5),
    (0, 1, 1, 5, 0, 4),
    (0, 1, 0, 4, 2, 3),
    (0, 4, 2, 3, 1, 5),
    (0, 1, 1, 4, 4, 5),
    (0, 4, 1, 5, 4, 5),
)


def writing(rng: Generator, lines: int, letters: int, wide: float, high: float) -> list[Segment]:
    """Segments of `lines` lines of `letters` made-up letters of `wide` x `high`."""
    across, down = wide * 1.85, high * 1.6
    segments: list[Segment] = []
    for row in range(lines):
        for column in range(letters):
            left = (column - (letters - 1) / 2) * across - wide / 2
            top = (row - (lines - 1) / 2) * down - high / 2
            glyph = _GLYPHS[rng.integers(len(_GLYPHS))]
            spots = [(left + (g % 2) * wide, top + (g // 2) * high / 2) for g in glyph]
            segments += [(*a, *b) for a, b in zip(spots[::2], spots[1::2], strict=True)]
    return segments
