"""Drawing canvas: colours and label, painted object by object with exact anti-aliasing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from sparsemask.synthetic.textures import soften

Array = np.ndarray
VOID = 255
REFERENCE = 128  # the image size that lengths refer to
_SHADOW = (1.5, 2.5)  # right, down; its softness is 2


class Canvas:
    """A square image (`image`: float RGB in [0, 1]) and its `label` (uint8 class indices, 255 void)."""

    def __init__(self, image: Array) -> None:
        self.image = image
        self.size = image.shape[0]
        self.unit = self.size / REFERENCE
        self.label = np.zeros(image.shape[:2], np.uint8)

    def _window(self, x: float, y: float, reach: float) -> tuple[slice, slice, Array, Array]:
        """Rows, columns and reference coordinates around (x, y) of the pixels within `reach` of it."""
        rows, columns = (
            slice(max(0, int((at - reach) * self.unit)), min(self.size, int((at + reach) * self.unit) + 2))
            for at in (y, x)
        )
        down, across = np.mgrid[rows, columns]
        return rows, columns, (across + 0.5) / self.unit - x, (down + 0.5) / self.unit - y

    def paint(
        self,
        index: int,
        centre: tuple[float, float],
        reach: float,
        distance: Callable[[Array, Array], Array],
        colour: Callable[[Array, Array], Array],
        turn: float = 0.0,
    ) -> None:
        """Paint one object of class `index` and cast its shadow.

        `distance(x, y)` is the signed distance to the outline (negative inside), `colour(x, y)` the RGB, in
        the object's frame: centred on `centre`, turned by `turn` radians, within `reach` of it. Pixels that
        the outline cuts become void, a border of about one pixel as in PASCAL VOC.
        """
        rows, columns, x, y = self._window(*centre, reach + 8)
        if not x.size:
            return
        cos, sin = np.cos(turn), np.sin(turn)
        x, y = cos * x + sin * y, cos * y - sin * x
        cover = np.clip(0.5 - distance(x, y) * self.unit, 0, 1)
        right, down = (max(1, round(step * self.unit)) for step in _SHADOW)
        shade = np.zeros_like(cover)
        shade[down:, right:] = cover[:-down, :-right]
        shade = 1 - 0.35 * soften(shade, max(1, round(self.unit)))
        under = self.image[rows, columns] * shade[..., None]
        cover3 = cover[..., None]
        self.image[rows, columns] = under * (1 - cover3) + np.clip(colour(x, y), 0, 1) * cover3
        label = self.label[rows, columns]
        label[cover > 0.25] = VOID
        label[cover > 0.75] = index

    def mist(self, centre: tuple[float, float], radius: float, colour: Array) -> None:
        """Veil the surroundings of `centre` in `colour`: opaque up to `radius`, transparent at 1.6 times that."""
        rows, columns, x, y = self._window(*centre, 1.6 * radius)
        veil = np.clip((1.6 - np.hypot(x, y) / radius) / 0.6, 0, 1)
        veil = (0.92 * veil * veil * (3 - 2 * veil))[..., None]
        self.image[rows, columns] = self.image[rows, columns] * (1 - veil) + colour * veil

    def picture(self) -> Array:
        """The colours as uint8 RGB."""
        return (np.clip(self.image, 0, 1) * 255 + 0.5).astype(np.uint8)
