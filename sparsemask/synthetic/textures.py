"""Procedural textures of the sample set: value noise, gradients, stripes, checkers, grain.

Every function returns float64 arrays; colours are RGB in [0, 1]. Lengths are in reference pixels, those of a
image of 128 x 128, so that a set drawn at another size looks the same.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

Array = np.ndarray


def _interpolate(grid: Array, size: int) -> Array:
    """Stretch (cells + 1, n) grid values to (size, n), with a smoothstep between neighbours."""
    cells = len(grid) - 1
    at = (np.arange(size) + 0.5) / size * cells
    low = np.minimum(at.astype(int), cells - 1)
    weight = at - low
    weight = (weight * weight * (3 - 2 * weight))[:, None]
    return grid[low] * (1 - weight) + grid[low + 1] * weight


def value_noise(rng: Generator, size: int, rows: int, columns: int) -> Array:
    """(size, size) smooth noise in [0, 1] from a random grid of `rows` x `columns` cells."""
    # No matrix products: their rounding, and their threads, are the machine's.
    return _interpolate(_interpolate(rng.random((rows + 1, columns + 1)), size).T, size).T


def fractal_noise(rng: Generator, size: int, rows: int, columns: int, octaves: int = 4) -> Array:
    """Sum of `octaves` value noises, each twice as fine and half as strong, stretched to [0, 1]."""
    total = sum(value_noise(rng, size, rows << k, columns << k) * 0.5**k for k in range(octaves))
    return (total - total.min()) / (total.max() - total.min())


def mix(first: Array, second: Array, weight: Array) -> Array:
    """Blend two colours or images; `weight` (H, W) in [0, 1] is the share of the second."""
    weight = weight[..., None]
    return first * (1 - weight) + second * weight


def gradient(size: int, top: Array, bottom: Array, tilt: float) -> Array:
    """(size, size, 3) vertical gradient; `tilt` leans it sideways."""
    rows, columns = np.mgrid[:size, :size] / max(1, size - 1)
    return mix(top, bottom, np.clip(rows + tilt * (columns - 0.5), 0, 1))


def stripes(along: Array, period: float, phase: float) -> Array:
    """Soft-edged bands in [0, 1] that alternate along the coordinate `along`."""
    return np.clip(0.5 + 2.2 * np.sin(2 * np.pi * along / period + phase), 0, 1)


def checker(x: Array, y: Array, period: float, phase: float) -> Array:
    """Soft-edged checkerboard in [0, 1]; a square's side is half the period."""
    wave = np.sin(2 * np.pi * x / period + phase) * np.sin(2 * np.pi * y / period + phase)
    return np.clip(0.5 + 3.5 * wave, 0, 1)


def dots(x: Array, y: Array, period: float) -> Array:
    """Polka dots in [0, 1] on a staggered grid."""
    row = np.floor(y / period)
    across = (x / period + 0.5 * (row % 2)) % 1 - 0.5
    return np.clip((0.3 - np.hypot(across, y / period - row - 0.5)) * period + 0.5, 0, 1)


def confetti(rng: Generator, x: Array, y: Array, side: float) -> Array:
    """Coloured grain: (H, W, 3) little squares of `side`, each of its own bright colour."""
    table = np.array([[0.93, 0.26, 0.32], [0.22, 0.72, 0.42], [0.25, 0.42, 0.9], [0.97, 0.8, 0.25], [0.9, 0.9, 0.92]])
    chosen = table[rng.integers(len(table), size=(64, 64))]
    return chosen[np.floor(y / side).astype(int) % 64, np.floor(x / side).astype(int) % 64]


def soften(field: Array, radius: int) -> Array:
    """Blur an (H, W) field by two box filters of `radius` pixels; edges are repeated."""
    width = 2 * radius + 1
    for axis in (0, 1, 0, 1):
        pad = [(0, 0), (0, 0)]
        pad[axis] = (radius + 1, radius)
        total = np.cumsum(np.pad(field, pad, mode="edge"), axis=axis)
        ahead, behind = ([slice(None)] * 2 for _ in range(2))
        ahead[axis], behind[axis] = slice(width, None), slice(None, -width)
        field = (total[tuple(ahead)] - total[tuple(behind)]) / width
    return field
