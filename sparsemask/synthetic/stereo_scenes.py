"""Generated scenes: textured planes, one before the other, with exact disparity and exact occlusion.

Every layer is a plane: its disparity in the left image is d(x, y) = a + b x + c y. The left image shows of every
pixel the nearest layer there, the one of the largest disparity; the right one is found the other way round: the point
of a layer that it shows at (x', y) has x = (x' + a + c y) / (1 - b), so that it too is exact, with textures
interpolated along the rows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import gaussian_filter, zoom

from sparsemask.errors import UseError
from sparsemask.files import write_bytes
from sparsemask.pictures.files import encoded
from sparsemask.tasks.stereo.files import write_disparity
from sparsemask.tasks.stereo.pairs import Frame

VERSION = 1  # of the scenes: raise it when any pixel changes
LEAST = 32  # px, of a side
_SLANT = 0.06  # the most that a disparity changes from pixel to pixel
_LAYERS = (2, 6)  # before the background


@dataclass(frozen=True)
class Plane:
    """A textured plane a + b x + c y, cut to a shape.

    Attributes:
        texture: float32 (H, W', 3) of 0 to 255, whose first column lies at x = -margin.
        centre, radii, turn: of the shape, in pixels and radians; centre None: the whole plane.
        box: a rectangle instead of an ellipse.
    """

    coefficients: tuple[float, float, float]
    texture: np.ndarray
    margin: int
    centre: tuple[float, float] | None = None
    radii: tuple[float, float] = (1.0, 1.0)
    turn: float = 0.0
    box: bool = False

    def disparity(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """At points of the left image."""
        a, b, c = self.coefficients
        return a + b * x + c * y

    def source(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """The left x of what the right image shows at (x, y)."""
        a, b, c = self.coefficients
        return (x + a + c * y) / (1 - b)

    def covers(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Whether points of the left image, between its pixels too, are on the shape."""
        if self.centre is None:
            return np.ones(np.broadcast(x, y).shape, bool)
        along, up = x - self.centre[0], y - self.centre[1]
        u = (np.cos(self.turn) * along + np.sin(self.turn) * up) / self.radii[0]
        v = (np.cos(self.turn) * up - np.sin(self.turn) * along) / self.radii[1]
        return np.maximum(abs(u), abs(v)) <= 1 if self.box else u * u + v * v <= 1

    def colour(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(..., 3) at points of the left image; y are whole numbers."""
        at = np.clip(x + self.margin, 0, self.texture.shape[1] - 1.001)
        left = at.astype(np.int64)
        share = (at - left)[..., None]
        rows = np.broadcast_to(y, x.shape).astype(np.int64)
        return self.texture[rows, left] * (1 - share) + self.texture[rows, left + 1] * share


def make_scene(
    rng: np.random.Generator, height: int, width: int, most: float, occluded: bool = True, name: str = "scene"
) -> Frame:
    """A scene of `height` x `width` pixels, at least 32 each, with disparities of 1 px up to about `most`.

    Args:
        occluded: whether pixels that the right image does not show have a disparity; else 0 there.
    """
    if min(height, width) < LEAST:
        raise UseError(f"generated scenes: {width}x{height} pixels, at least {LEAST}x{LEAST} are needed")
    most = max(2.0, min(float(most), width / 3))
    planes = [_plane(rng, height, width, 1.0, 1 + 0.4 * (most - 1), shaped=False)]
    count = int(rng.integers(*_LAYERS))
    for number in range(count):
        low, high = (1 + (0.4 + 0.6 * (number + step) / count) * (most - 1) for step in (0, 1))
        planes.append(_plane(rng, height, width, low, high))
    return render(planes, height, width, rng, occluded, name)


def render(
    planes: Sequence[Plane], height: int, width: int, rng: np.random.Generator | None, occluded: bool, name: str
) -> Frame:
    """Both views of some planes, of which one covers everything; rng: draws a camera's noise, None: none."""
    x, y = np.meshgrid(np.arange(width, dtype=np.float64), np.arange(height, dtype=np.float64))
    nearest, disparity = _nearest(planes, [x] * len(planes), y)
    sources = [plane.source(x, y) for plane in planes]
    nearest_right, _ = _nearest(planes, sources, y)
    # A pixel is seen from the right too where the layer shown there is its own.
    x_right = x - disparity
    hidden, _ = _nearest(planes, [plane.source(x_right, y) for plane in planes], y)
    visible = (hidden == nearest) & (x_right >= 0)
    views = []
    for chosen, coordinates in ((nearest, [x] * len(planes)), (nearest_right, sources)):
        view = np.zeros((height, width, 3))
        for number, (plane, at) in enumerate(zip(planes, coordinates, strict=True)):
            pixels = chosen == number
            view[pixels] = plane.colour(at[pixels], y[pixels])
        if rng is not None:
            view = view * rng.uniform(0.97, 1.03) + rng.normal(0, 1.5, view.shape)
        views.append(np.rint(view).clip(0, 255).astype(np.uint8))
    truth = disparity.astype(np.float32)
    return Frame(name, *views, truth if occluded else np.where(visible, truth, np.float32(0)), visible)


def write_scenes(
    folder: str | os.PathLike, count: int, height: int = 128, width: int = 256, most: float = 48, seed: int = 0
) -> list[Path]:
    """Write scenes as files: 0000_left.png, 0000_right.png, 0000_disp.pfm, ..., and the list pairs.txt.

    Returns:
        The files of disparities.
    """
    folder, written = Path(folder), []
    for number in range(count):
        frame = make_scene(np.random.default_rng([seed, number]), height, width, most)
        stem = f"{number:04d}"
        for side, image in (("left", frame.left), ("right", frame.right)):
            write_bytes(folder / f"{stem}_{side}.png", encoded(Image.fromarray(image), "PNG"))
        written.append(folder / f"{stem}_disp.pfm")
        write_disparity(written[-1], frame.disparity)
    names = (path.name.removesuffix("_disp.pfm") for path in written)
    lines = (f"{name}_left.png {name}_right.png {name}_disp.pfm\n" for name in names)
    write_bytes(folder / "pairs.txt", "".join(lines).encode())
    return written


def _nearest(planes: Sequence[Plane], xs: Sequence[np.ndarray], y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(number of the nearest plane, its disparity), each plane looked at in its own left coordinates."""
    depths = np.stack(
        [np.where(plane.covers(x, y), plane.disparity(x, y), -np.inf) for plane, x in zip(planes, xs, strict=True)]
    )
    return depths.argmax(0), depths.max(0)


def _plane(rng: np.random.Generator, height: int, width: int, low: float, high: float, shaped: bool = True) -> Plane:
    """A plane whose disparities lie between low and high on its shape."""
    shape: dict = {}
    across, up, middle = width / 2, height / 2, (width / 2, height / 2)
    if shaped:
        middle = (float(rng.uniform(0, width)), float(rng.uniform(0, height)))
        radii = tuple(float(rng.uniform(0.1, 0.35) * min(height, width)) for _ in range(2))
        shape = {"centre": middle, "radii": radii, "turn": float(rng.uniform(0, np.pi)), "box": bool(rng.integers(2))}
        across = up = float(np.hypot(*radii))
    half = (high - low) / 2
    b, c = (float(rng.uniform(-1, 1) * min(_SLANT, half / (2 * side))) for side in (across, up))
    reach = abs(b) * across + abs(c) * up
    centre = float(rng.uniform(low + reach, high - reach))
    margin = int(np.ceil(high)) + 2
    texture = _texture(rng, height, width + 2 * margin)
    return Plane((centre - b * middle[0] - c * middle[1], b, c), texture, margin, **shape)


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Random dots, or clouds of several sizes, in two colours; float32 (height, width, 3) of 0 to 255."""
    if rng.integers(2):
        side = int(rng.integers(1, 4))
        dots = rng.random((-(-height // side), -(-width // side))) < rng.uniform(0.2, 0.8)
        values = gaussian_filter(dots.repeat(side, 0).repeat(side, 1)[:height, :width].astype(np.float32), 0.5)
    else:
        values = np.zeros((-(-height // 16), -(-width // 16)), np.float32)
        for _ in range(4):
            values = zoom(values + rng.normal(size=values.shape).astype(np.float32), 2, order=1)
        values = values[:height, :width]
        values = (values - values.min()) / np.ptp(values)
    ends = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    while abs(ends[0] - ends[1]).max() < 80:  # without contrast nothing could be matched
        ends = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    return ends[0] + values[..., None] * (ends[1] - ends[0])
