"""One image of the sample set with its label: twenty made-up classes on sky and ground scenes.

What decides a class differs on purpose, so that a network needs fine and coarse features both:

- fine detail: ring and wheel (same colour, told apart by the spokes), lattice, comb, twig, writing;
- texture: upright stripes, level stripes and checker share their colours and outline; grain is confetti;
- scale: pebbles and boulder look alike but for their size;
- global shape: disc and square have the same colour and shading, their insides are identical;
- neighbour: a bead is `bead by disc` or `bead by square` after the larger thing it lies beside;
- scene: the same dotted diamond is a `kite` in the sky and a `tent` on the ground, the same yellow star is a
  `star` or a `starfish`; mist hides the scene around them, so that only far pixels tell.

A mirror image keeps every class, and sizes of different classes are a factor of three apart, so that mild
augmentation (flip, scales 0.75 to 1.25) keeps the labels true.
"""

from __future__ import annotations

import numpy as np
from numpy.random import PCG64, Generator, SeedSequence

from sparsemask.synthetic.canvas import REFERENCE, Canvas
from sparsemask.synthetic.objects import KINDS
from sparsemask.synthetic.textures import fractal_noise, gradient, mix, value_noise

THINGS = 5  # in one image

# Pale and unsaturated, so that the objects' own colours stay telling: (top, bottom, clouds).
_SKIES = (
    ((0.52, 0.70, 0.90), (0.84, 0.91, 0.95), (0.97, 0.98, 1.0)),
    ((0.62, 0.68, 0.86), (0.96, 0.86, 0.80), (1.0, 0.95, 0.92)),
    ((0.45, 0.62, 0.80), (0.72, 0.86, 0.90), (0.90, 0.95, 0.97)),
)
_GROUNDS = (  # (dark, light, tufts)
    ((0.32, 0.42, 0.20), (0.52, 0.60, 0.32), (0.26, 0.36, 0.16)),
    ((0.58, 0.48, 0.34), (0.76, 0.66, 0.48), (0.50, 0.40, 0.28)),
    ((0.40, 0.36, 0.28), (0.58, 0.54, 0.42), (0.33, 0.30, 0.22)),
)
_MIST = np.array((0.86, 0.86, 0.84))


def generator(*key: int) -> Generator:
    """Random numbers of a key: a seed, a stream, a number; the same on every machine."""
    return Generator(PCG64(SeedSequence(key)))


def sky(rng: Generator, size: int) -> np.ndarray:
    """(size, size, 3) pale sky with clouds."""
    top, bottom, cloud = (np.array(colour) for colour in _SKIES[rng.integers(len(_SKIES))])
    clouds = fractal_noise(rng, size, 4, 2)
    return mix(gradient(size, top, bottom, rng.uniform(-0.3, 0.3)), cloud, 0.9 * np.clip(2.6 * clouds - 1.2, 0, 1))


def ground(rng: Generator, size: int) -> np.ndarray:
    """(size, size, 3) meadow, sand or soil with tufts."""
    dark, light, tuft = (np.array(colour) for colour in _GROUNDS[rng.integers(len(_GROUNDS))])
    earth = mix(dark, light, fractal_noise(rng, size, 5, 4))
    tufts = fractal_noise(rng, size, 11, 16, octaves=3) * (0.6 + 0.4 * value_noise(rng, size, 3, 3))
    return mix(earth, tuft, np.clip(3.0 * tufts - 1.1, 0, 0.75))


def things_of(seed: int, number: int, count: int = THINGS) -> list[int]:
    """Kinds of the objects in image `number`, from shuffled decks, so that all are equally frequent."""
    deck = len(KINDS)
    dealt = range(number * count, number * count + count)
    return [int(generator(seed, 1, at // deck).permutation(deck)[at % deck]) for at in dealt]


def _place(rng: Generator, occupied: list[tuple[float, float, float]], radius: float) -> tuple[float, float]:
    """A random position with enough distance to other objects; near the border an object may be cut."""
    margin = 0.72 * radius
    candidates = rng.uniform(margin, REFERENCE - margin, (60, 2))
    gaps = np.full(len(candidates), np.inf)
    for x, y, other_radius in occupied:
        gaps = np.minimum(gaps, np.hypot(candidates[:, 0] - x, candidates[:, 1] - y) - radius - other_radius)
    # Things that fit stay where chance put them, else the images would all be laid out alike.
    best = int(np.argmax(gaps > 1)) if (gaps > 1).any() else int(gaps.argmax())
    return float(candidates[best, 0]), float(candidates[best, 1])


def draw_scene(seed: int, number: int, size: int = REFERENCE) -> tuple[np.ndarray, np.ndarray]:
    """Draw image `number` of the set `seed`: RGB (size, size, 3) and label (size, size), both uint8.

    Every image depends on (seed, number, size) only, so that a set can be drawn in any order.
    """
    rng = generator(seed, 0, number)
    in_sky = bool(rng.integers(2))
    canvas = Canvas((sky if in_sky else ground)(rng, size))
    kinds = sorted((KINDS[index] for index in things_of(seed, number)), key=lambda kind: -kind.room)
    placements: list[tuple[float, float, float]] = []
    for kind in kinds:
        placements.append((*_place(rng, placements, kind.room), kind.room))
    for kind, (*position, radius) in zip(kinds, placements, strict=True):
        if kind.by_scene:  # hide the scene nearby; mist is air, behind all things
            canvas.mist(position, 1.15 * radius, _MIST)
    for kind, (*position, _) in zip(kinds, placements, strict=True):
        kind.draw(canvas, rng, position, *([in_sky] if kind.by_scene else []))
    canvas.image = canvas.image * rng.uniform(0.93, 1.04) + rng.normal(0, 0.018, canvas.image.shape)
    return canvas.picture(), canvas.label
