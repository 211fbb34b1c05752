"""Drawn images for classification: ten outlines, light and of any hue and texture, on dark grounds, 32x32.

Every image is a function of (seed, number): class, position, size, rotation, colours, texture, light and noise. The
class depends on the outline alone. The set is drawn once into the cache folder, as .npz in the layout of any such data.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from sparsemask.files import atomic_write, write_text
from sparsemask.synthetic import outlines, textures
from sparsemask.synthetic.folders import once
from sparsemask.synthetic.scenes import generator

VERSION = 2  # of the drawings: raise it when any pixel changes
SIDE = 32
TRAIN, TEST = 2000, 500
_STREAM = 103
_FINE = 2  # pixels drawn for one
_BETWEEN = 0.45  # every colour of the ground is below, of the thing above


def _triangle(x, y):
    return np.maximum(np.abs(x) * 0.866 + y * 0.5 - 0.45, -y - 0.55)


def _cross(x, y):
    return outlines.strokes(x, y, [(-0.75, 0, 0.75, 0), (0, -0.75, 0, 0.75)], 0.22)


def _crescent(x, y):
    return np.maximum(outlines.disc(x, y, 0.95), -outlines.disc(x - 0.5, y, 0.75))


def _arrow(x, y):
    return outlines.strokes(x, y, [(0, -0.8, 0, 0.8), (0, -0.8, -0.55, -0.2), (0, -0.8, 0.55, -0.2)], 0.15)


# Outlines within about 1 of their middle: signed distances, negative inside.
OUTLINES = {
    "disc": lambda x, y: outlines.disc(x, y, 0.9),
    "square": lambda x, y: outlines.square(x, y, 0.8, 0.05),
    "triangle": _triangle,
    "star": lambda x, y: outlines.star(x, y, 1.1, waist=0.4),
    "ring": lambda x, y: outlines.ring(x, y, 0.72, 0.2),
    "cross": _cross,
    "crescent": _crescent,
    "ellipse": lambda x, y: outlines.ellipse(x, y, 1.0, 0.48),
    "arrow": _arrow,
    "bars": lambda x, y: outlines.strokes(x, y, [(p, -0.7, p, 0.7) for p in (-0.6, 0.0, 0.6)], 0.16),
}


def sample() -> Path:
    """The folder of --sample, drawn unless it is there."""
    return once(f"classification-{VERSION}", "classification", make_sample)


def make_sample(folder: Path, train: int = TRAIN, test: int = TEST, seed: int = 0) -> None:
    """Draw `train` and `test` images, all classes alike, into train.npz, test.npz and classes.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, numbers in (("train", range(train)), ("test", range(train, train + test))):
        images = np.stack([draw_picture(seed, number) for number in numbers])
        labels = np.array([number % len(OUTLINES) for number in numbers], np.uint8)
        with atomic_write(folder / f"{name}.npz") as file:
            np.savez_compressed(file, x=images, y=labels)
    write_text(folder / "classes.json", json.dumps(list(OUTLINES)) + "\n")


def draw_picture(seed: int, number: int) -> np.ndarray:
    """Image uint8 (32, 32, 3) of class number % 10."""
    rng = generator(seed, _STREAM, number)
    outline = list(OUTLINES.values())[number % len(OUTLINES)]
    size = SIDE * _FINE
    down, across = (np.mgrid[:size, :size] + 0.5) / _FINE
    # Lighter than the ground, always: where either may be, a network needs thousands of steps before it sees outlines.
    dark, light = rng.uniform(0, _BETWEEN, (2, 3)), rng.uniform(_BETWEEN, 1, (2, 3))
    background = textures.mix(*dark, textures.value_noise(rng, size, *rng.integers(2, 6, 2)))
    radius = rng.uniform(8, 12.5)
    middle = SIDE / 2 + rng.uniform(-1, 1, 2) * (SIDE / 2 - radius)
    turn = rng.uniform(-0.6, 0.6)
    x, y = across - middle[0], down - middle[1]
    x, y = np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x
    if rng.integers(2):
        weight = textures.stripes(x + y * rng.uniform(-1, 1), rng.uniform(4, 7), rng.uniform(0, 6))
    else:
        weight = textures.value_noise(rng, size, 4, 4)
    texture = textures.mix(light[0], 0.6 * light[0] + 0.4 * light[1], weight)
    cover = np.clip(0.5 - outline(x / radius, y / radius) * radius * _FINE, 0, 1)
    lit = 1 + rng.uniform(-0.3, 0.3) * (across / SIDE - 0.5) + rng.uniform(-0.3, 0.3) * (down / SIDE - 0.5)
    drawn = textures.mix(background, texture, cover) * lit[..., None]
    drawn = drawn.reshape(SIDE, _FINE, SIDE, _FINE, 3).mean((1, 3)) + rng.normal(0, 0.04, (SIDE, SIDE, 3))
    return (np.clip(drawn, 0, 1) * 255 + 0.5).astype(np.uint8)
