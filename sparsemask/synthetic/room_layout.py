"""Generated rooms: the placement of objects, and a simulated scan of their surfaces."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsemask.synthetic import room_furniture as things
from sparsemask.synthetic.room_furniture import Colour, Thing

TYPES = ("office", "conferenceRoom", "lounge")
_NOISE = 0.004  # metres, of a point across and along its surface
_WALLS = ((0.86, 0.85, 0.8), (0.8, 0.82, 0.78), (0.9, 0.86, 0.76), (0.76, 0.8, 0.84))
_FLOORS = ((0.42, 0.41, 0.42), (0.5, 0.37, 0.26), (0.36, 0.4, 0.46), (0.55, 0.5, 0.43))
_WOODS = ((0.62, 0.46, 0.3), (0.45, 0.31, 0.2), (0.82, 0.78, 0.7), (0.7, 0.58, 0.42))
_CLOTHS = ((0.15, 0.15, 0.17), (0.5, 0.14, 0.13), (0.14, 0.22, 0.45), (0.18, 0.35, 0.24))
_SOFAS = ((0.55, 0.2, 0.16), (0.28, 0.24, 0.22), (0.2, 0.32, 0.5), (0.62, 0.55, 0.42))
_DOORS = ((0.55, 0.36, 0.2), (0.38, 0.24, 0.14), (0.5, 0.56, 0.62))
_BOARDS = ((0.96, 0.97, 0.98), (0.13, 0.3, 0.22))
_GLASS = ((0.62, 0.78, 0.92), (0.5, 0.64, 0.8))
_METAL, _WHITE = (0.35, 0.36, 0.38), (0.93, 0.93, 0.92)
_LIGHT = np.array([0.35, 0.5, 0.79])


@dataclass
class _Room:
    """A room in the making: its size and what it holds; its walls run anticlockwise, seen from within."""

    size: np.ndarray  # width, depth, height
    rng: np.random.Generator
    things: list[Thing]

    def pick(self, palette: tuple[Colour, ...]) -> Colour:
        """One of a palette's colours, a little changed."""
        return tuple(np.clip(palette[self.rng.integers(len(palette))] + self.rng.normal(0, 0.02, 3), 0, 1))

    def wall(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """(corner, direction along, direction inward, length) of a wall."""
        width, depth, _ = self.size
        corner = np.array([(0, 0, 0), (width, 0, 0), (width, depth, 0), (0, depth, 0)][number], float)
        along = np.array([(1, 0, 0), (0, 1, 0), (-1, 0, 0), (0, -1, 0)][number], float)
        inward = np.array([(0, 1, 0), (-1, 0, 0), (0, -1, 0), (1, 0, 0)][number], float)
        return corner, along, inward, (width, depth)[number % 2]

    def at_wall(self, number: int, thing: Thing, start: float, up: float = 0.0) -> None:
        """Put an object against a wall, `start` metres from the wall's beginning and `up` above the floor."""
        corner, along, inward, _ = self.wall(number)
        self.things.append(thing.placed(corner + start * along + np.array([0, 0, up]), along, inward))

    def on_floor(self, thing: Thing, x: float, y: float, angle: float = 0.0, z: float = 0.0) -> None:
        """Put an object anywhere, rotated about the vertical by `angle` radians."""
        along, inward = np.array([np.cos(angle), np.sin(angle), 0]), np.array([-np.sin(angle), np.cos(angle), 0])
        self.things.append(thing.placed(np.array([x, y, z]), along, inward))


def furnish(kind: str, rng: np.random.Generator) -> list[Thing]:
    """Objects of a room; all 13 classes occur in most rooms, beams and columns in some only."""
    room = _Room(np.array([rng.uniform(3.4, 5), rng.uniform(3.2, 4.4), rng.uniform(2.5, 3)]), rng, [])
    door, glazed, board, shelf = rng.permutation(4)
    height = room.size[2]
    holes: dict[int, list[tuple]] = {number: [] for number in range(4)}
    start, width = rng.uniform(0.3, 0.8), rng.uniform(0.85, 1)
    holes[door].append((start, start + width, 0.0, 2.05))
    leaf = (room.pick(_DOORS), room.pick(_DOORS))
    room.at_wall(door, things.opening("door", width, 0.0, 2.05, leaf, 0.06), start)
    long = room.wall(glazed)[3]
    start, width = rng.uniform(0.6, 0.9), long - rng.uniform(1.5, 1.9)
    holes[glazed].append((start, start + width, 0.95, 2.1))
    room.at_wall(glazed, things.opening("window", width, 0.95, 2.1, (room.pick(_GLASS), _WHITE), 0.12), start)
    _shell(room, holes)
    long = room.wall(board)[3]
    width = rng.uniform(1.3, long - 1.6)
    face = _BOARDS[int(rng.random() < 0.3)]
    room.at_wall(board, things.board(width, rng.uniform(0.9, 1.15), (face, _METAL)), rng.uniform(0.7, 1.1), 0.9)
    long = room.wall(shelf)[3]
    width = rng.uniform(0.9, 1.6)
    case = things.bookcase(width, min(height - 0.3, rng.uniform(1.7, 2.2)), room.pick(_WOODS), rng)
    room.at_wall(shelf, case, rng.uniform(0.5, long - width - 0.5))
    if kind != "conferenceRoom":
        length = rng.uniform(1.4, 1.9)
        start = rng.uniform(0.4, room.wall(glazed)[3] - length - 0.3)
        room.at_wall(glazed, things.sofa(length, room.pick(_SOFAS)), start)
    _seats(room, kind)
    _clutter(room, door)
    return room.things


def _shell(room: _Room, holes: dict[int, list[tuple]]) -> None:
    rng, (width, depth, height) = room.rng, room.size
    floor = things.patch((0, 0, 0), (width, 0, 0), (0, depth, 0))
    room.things.append(Thing("floor", weight=1.0).add([floor], room.pick(_FLOORS)))
    ceiling = Thing("ceiling", weight=1.0).add([floor + [[0, 0, height], [0] * 3, [0] * 3]], (0.88, 0.88, 0.86))
    for x in np.arange(0.8, width - 0.6, 1.5):  # lamps, flush
        ceiling.add([things.patch((x, depth / 2 - 0.5, height - 0.01), (0.3, 0, 0), (0, 1, 0))], (1, 1, 0.97))
    room.things.append(ceiling)
    paint = room.pick(_WALLS)
    for number in range(4):
        wall = Thing("wall", weight=1.0).add(things.wall_with_holes(room.wall(number)[3], height, holes[number]), paint)
        room.at_wall(number, wall, 0.0)
    side = rng.uniform(0.28, 0.42)
    if rng.random() < 0.75:
        column = Thing("column").add(things.box((0, 0, 0), (side, side, height), ("bottom", "top")), room.pick(_WALLS))
        room.at_wall(int(rng.integers(4)), column, 0.0)
    if rng.random() < 0.75:
        y = rng.uniform(0.25, 0.7) * depth
        low = height - rng.uniform(0.2, 0.35)
        beam = things.box((0, y, low), (width, y + side, height), ("top", "left", "right"))
        room.things.append(Thing("beam").add(beam, room.pick(_WALLS)))


def _seats(room: _Room, kind: str) -> None:
    """A table in the middle, chairs around it, things upon it."""
    rng = room.rng
    length, depth = rng.uniform(1.1, 1.5) + 0.3 * (kind == "conferenceRoom"), rng.uniform(0.65, 0.8)
    height, angle = rng.uniform(0.7, 0.76), rng.choice([0, np.pi / 2]) + rng.normal(0, 0.05)
    table = things.table(length, depth, height, room.pick(_WOODS), _METAL)
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    middle = room.size[:2] / 2 + rng.uniform(-0.25, 0.25, 2)
    position = lambda x, y: middle + np.array([x, y]) @ turn
    room.on_floor(table, *position(-length / 2, -depth / 2), angle)
    cloth, swivel = room.pick(_CLOTHS), bool(rng.random() < 0.5)
    for x in (-length / 4, length / 4):
        for side in (-1, 1):
            if kind == "conferenceRoom" or rng.random() < 0.6 or (x < 0 < side):
                at = position(x + rng.normal(0, 0.05), side * (depth / 2 + rng.uniform(0.1, 0.3)))
                facing = angle + (np.pi if side > 0 else 0) + rng.normal(0, 0.25)
                room.on_floor(things.chair(cloth, _METAL, swivel), *at, facing)
    for x in np.linspace(-0.35, 0.35, 3) * length:
        at = position(x, rng.uniform(-0.15, 0.15))
        room.on_floor(_small(room), *at, angle + rng.normal(0, 0.4), height)


def _small(room: _Room) -> Thing:
    """A screen, a cup or a pile of paper."""
    rng, item = room.rng, Thing("clutter", weight=3.0)
    kind = rng.integers(3)
    if kind == 0:
        item.add(things.box((-0.24, -0.02, 0.1), (0.24, 0.02, 0.42), ()), (0.08, 0.08, 0.1))
        return item.add(things.box((-0.1, -0.08, 0), (0.1, 0.08, 0.02)), _METAL)
    if kind == 1:
        return item.add(things.prism((0, 0, 0), 0.045, 0.11), tuple(rng.uniform(0.1, 0.9, 3)))
    return item.add(things.box((-0.11, -0.15, 0), (0.11, 0.15, rng.uniform(0.03, 0.12))), _WHITE)


def _clutter(room: _Room, door: int) -> None:
    """Boxes and a bin along the walls, a poster beside the door."""
    rng = room.rng
    for _ in range(rng.integers(2, 5)):
        number = int(rng.integers(4))
        side = rng.uniform(0.2, 0.45, 3)
        item = Thing("clutter")
        if rng.random() < 0.4:
            item.add(things.prism((0.2, 0.2, 0), 0.16, 0.4), (0.2, 0.22, 0.24))
        else:
            item.add(things.box((0, 0.02, 0), (*side,)), tuple(np.clip(rng.normal((0.6, 0.45, 0.3), 0.12), 0, 1)))
        room.at_wall(number, item, rng.uniform(1.5, room.wall(number)[3] - 0.6))
    poster = things.box((0, 0, 0), (rng.uniform(0.4, 0.7), 0.015, rng.uniform(0.5, 0.9)), ("front",))
    item = Thing("clutter").add(poster, tuple(rng.uniform(0.15, 0.85, 3)))
    room.at_wall(door, item, rng.uniform(2.0, room.wall(door)[3] - 0.8), rng.uniform(1.2, 1.4))


def scan(scene: list[Thing], points: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points of a room's surfaces, with a scanner's noise and shaded colours.

    Returns:
        xyz float64 (N, 3) in metres, colours uint8 (N, 3), and the index of the object of each point, int (N,),
        in order.
    """
    patches = np.concatenate([np.stack(thing.patches) for thing in scene])
    base = np.concatenate([np.asarray(thing.colours, float) for thing in scene])
    owner = np.repeat(np.arange(len(scene)), [len(thing.patches) for thing in scene])
    normal = np.cross(patches[:, 1], patches[:, 2])
    area = np.linalg.norm(normal, axis=1)
    share = area * np.array([thing.weight for thing in scene])[owner]
    chosen = np.sort(rng.choice(len(patches), points, p=share / share.sum()))
    at = rng.random((points, 2, 1))
    xyz = patches[chosen, 0] + (at * patches[chosen, 1:]).sum(1) + rng.normal(0, _NOISE, (points, 3))
    shade = 0.72 + 0.28 * np.abs(normal @ _LIGHT) / np.maximum(area, 1e-9)
    stains = 0.02 * np.sin(xyz @ rng.normal(0, 4, (3, 3)))  # slow changes over a surface
    colours = base[chosen] * (shade[chosen] * rng.uniform(0.9, 1.05))[:, None] + stains
    colours += rng.normal(0, 0.03, (points, 3))
    return xyz, (np.clip(colours, 0, 1) * 255).round().astype(np.uint8), owner[chosen]
