"""Objects of generated rooms as flat patches: boxes, prisms, furniture."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Colour = tuple[float, float, float]
_SIDES = {"bottom": (2, 0), "top": (2, 1), "left": (0, 0), "right": (0, 1), "front": (1, 0), "back": (1, 1)}


@dataclass
class Thing:
    """One object: its class's name, its parallelograms (corner, edge, edge) and their colours.

    Attributes:
        weight: points it gets for its area, against walls.
    """

    kind: str
    patches: list[np.ndarray] = field(default_factory=list)  # (3, 3) each, metres
    colours: list[Colour] = field(default_factory=list)  # in [0, 1]
    weight: float = 2.0
    name: str = ""  # `<class>_<n>`, once the room is full

    def add(self, patches: list[np.ndarray], colour: Colour) -> Thing:
        """Add patches of one colour."""
        self.patches += patches
        self.colours += [colour] * len(patches)
        return self

    def placed(self, origin: np.ndarray, along: np.ndarray, inward: np.ndarray) -> Thing:
        """A copy moved from its own axes (x along, y inward, z up) to a position in the room."""
        turn = np.stack([along, inward, [0.0, 0.0, 1.0]])
        moved = [patch @ turn + np.array([origin, np.zeros(3), np.zeros(3)]) for patch in self.patches]
        return Thing(self.kind, moved, self.colours, self.weight)


def patch(corner: tuple, first_edge: tuple, second_edge: tuple) -> np.ndarray:
    """The parallelogram from a corner by two edges."""
    return np.array([corner, first_edge, second_edge], float)


def box(low: tuple, high: tuple, without: tuple[str, ...] = ("bottom",)) -> list[np.ndarray]:
    """Faces of an upright box but those named (bottom, top, left, right, front, back: low to high z, x, y)."""
    low_, size = np.array(low, float), np.subtract(high, low).astype(float)
    faces = []
    for name, (axis, end) in _SIDES.items():
        if name not in without:
            edges = np.diag(size)
            faces.append(np.stack([low_ + end * edges[axis], *np.delete(edges, axis, axis=0)]))
    return faces


def prism(centre: tuple, radius: float, height: float, sides: int = 8) -> list[np.ndarray]:
    """The mantle of an upright prism with so many sides, standing on `centre`."""
    angles = np.linspace(0, 2 * np.pi, sides + 1)
    rim = np.stack([np.cos(angles), np.sin(angles), np.zeros(sides + 1)], axis=1) * radius + np.array(centre)
    return [np.stack([rim[i], rim[i + 1] - rim[i], [0.0, 0.0, height]]) for i in range(sides)]


def wall_with_holes(length: float, height: float, holes: list[tuple[float, float, float, float]]) -> list[np.ndarray]:
    """A wall from the origin along x, without rectangles (x0, x1, z0, z1) that do not overlap in x."""
    strips, at = [], 0.0
    for x0, x1, z0, z1 in [*sorted(holes), (length, length, 0.0, 0.0)]:
        strips += [(at, x0, 0.0, height), (x0, x1, 0.0, z0), (x0, x1, z1, height)]
        at = x1
    return [patch((a, 0, c), (b - a, 0, 0), (0, 0, d - c)) for a, b, c, d in strips if b - a > 1e-6 and d - c > 1e-6]


def table(length: float, depth: float, height: float, colour: Colour, legs: Colour) -> Thing:
    """A table on four legs, its corner at the origin."""
    thing = Thing("table").add(box((0, 0, height - 0.04), (length, depth, height), ()), colour)
    for x in (0.03, length - 0.08):
        for y in (0.03, depth - 0.08):
            thing.add(box((x, y, 0), (x + 0.05, y + 0.05, height - 0.04), ("bottom", "top")), legs)
    return thing


def chair(colour: Colour, legs: Colour, swivel: bool) -> Thing:
    """A chair that looks along y, the middle of its seat over the origin; on four legs or on a column with a foot."""
    thing = Thing("chair", weight=3.0)
    thing.add(box((-0.23, -0.22, 0.42), (0.23, 0.22, 0.48), ()), colour)
    thing.add(box((-0.21, -0.25, 0.52), (0.21, -0.2, 0.92), ()), colour)
    if swivel:
        thing.add(prism((0, 0, 0.06), 0.04, 0.36), legs)
        thing.add(box((-0.28, -0.03, 0.02), (0.28, 0.03, 0.06)), legs)
        thing.add(box((-0.03, -0.28, 0.02), (0.03, 0.28, 0.06)), legs)
    else:
        for x in (-0.22, 0.18):
            for y in (-0.21, 0.17):
                thing.add(box((x, y, 0), (x + 0.04, y + 0.04, 0.42), ("bottom", "top")), legs)
    return thing


def sofa(length: float, colour: Colour) -> Thing:
    """A sofa along x, its back at y = 0."""
    thing = Thing("sofa").add(box((0.15, 0.2, 0.08), (length - 0.15, 0.85, 0.43)), colour)
    thing.add(box((0, 0, 0.08), (length, 0.2, 0.82), ("bottom", "front")), colour)
    for x in (0, length - 0.15):
        thing.add(box((x, 0.2, 0.08), (x + 0.15, 0.85, 0.6)), colour)
    return thing


def bookcase(length: float, height: float, colour: Colour, rng: np.random.Generator) -> Thing:
    """A bookcase along x, open towards y: boards and rows of books of all colours."""
    thing = Thing("bookcase", weight=1.5)
    thing.add(box((0, 0, 0), (length, 0.32, height), ("bottom", "front", "back")), colour)
    levels = np.linspace(0.05, height - 0.02, int(height / 0.36) + 1)
    for low, high in zip(levels[:-1], levels[1:], strict=True):
        thing.add([patch((0, 0, low), (length, 0, 0), (0, 0.32, 0))], colour)
        x = 0.02
        while x < length - 0.1:
            width = rng.uniform(0.03, 0.09)
            if rng.random() < 0.85:
                tall = low + rng.uniform(0.6, 0.9) * (high - low)
                thing.add(
                    box((x, 0.02, low), (x + width, rng.uniform(0.2, 0.28), tall), ("bottom", "front", "left")),
                    tuple(rng.uniform(0.1, 0.85, 3)),
                )
            x += width
    return thing


def opening(kind: str, width: float, low: float, high: float, colours: tuple[Colour, Colour], depth: float) -> Thing:
    """A door or a window in the wall y = 0: a leaf behind the wall's plane, and the frame around it."""
    leaf, frame = colours
    thing = Thing(kind).add([patch((0, -depth, low), (width, 0, 0), (0, 0, high - low))], leaf)
    for x in (0.0, width):
        thing.add([patch((x, -depth, low), (0, depth, 0), (0, 0, high - low))], frame)
    rim = 0.06
    bars = [(0, rim, low, high), (width - rim, width, low, high), (0, width, high - rim, high)]
    if kind == "window":
        bars += [(0, width, low, low + rim), (width / 2 - 0.03, width / 2 + 0.03, low, high)]
        thing.add([patch((0, -depth, low), (width, 0, 0), (0, depth + 0.06, 0))], frame)
    for x0, x1, z0, z1 in bars:
        thing.add(box((x0, -0.01, z0), (x1, 0.02, z1), ("bottom", "front")), frame)
    return thing


def board(width: float, height: float, colours: tuple[Colour, Colour]) -> Thing:
    """A board on the wall y = 0 with a rim and a shelf for pens."""
    face, rim = colours
    thing = Thing("board").add([patch((0, 0.03, 0), (width, 0, 0), (0, 0, height))], face)
    for x0, x1, z0, z1 in ((0, width, -0.03, 0), (0, width, height, height + 0.03), (-0.03, 0, 0, height)):
        thing.add(box((x0, 0, z0), (x1, 0.04, z1), ("front",)), rim)
    return thing.add(box((0.1, 0, -0.05), (width - 0.1, 0.09, -0.03), ("front",)), rim)
