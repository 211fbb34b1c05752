"""What a cloud can be painted with: classes, errors, kept points; and the customary colours of classes.

S3DIS has no official colours; these are the ones most point-cloud toolkits show it in, with a clutter that is seen on
white. SemanticKITTI's are those of its own configuration (`color_map` of semantic-kitti-api, there in the order BGR).
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sparsemask.errors import UseError

S3DIS_COLOURS = {
    "ceiling": (233, 229, 107), "floor": (95, 156, 196), "wall": (179, 116, 81), "beam": (241, 149, 131),
    "column": (81, 163, 148), "window": (77, 174, 84), "door": (108, 135, 75), "table": (79, 79, 76),
    "chair": (41, 49, 101), "sofa": (89, 47, 95), "bookcase": (223, 52, 52), "board": (81, 109, 114),
    "clutter": (168, 168, 160),
}  # fmt: skip
SEMANTICKITTI_COLOURS = {
    "car": (100, 150, 245), "bicycle": (100, 230, 245), "motorcycle": (30, 60, 150), "truck": (80, 30, 180),
    "other-vehicle": (0, 0, 255), "person": (255, 30, 30), "bicyclist": (255, 40, 200), "motorcyclist": (150, 30, 90),
    "road": (255, 0, 255), "parking": (255, 150, 255), "sidewalk": (75, 0, 75), "other-ground": (175, 0, 75),
    "building": (255, 200, 0), "fence": (255, 120, 50), "vegetation": (0, 175, 0), "trunk": (135, 60, 0),
    "terrain": (150, 240, 80), "pole": (255, 240, 150), "traffic-sign": (255, 0, 0),
}  # fmt: skip
_KNOWN = {**S3DIS_COLOURS, **SEMANTICKITTI_COLOURS}
_UNLABELLED = "no label", (205, 205, 205)
_KEPT, _DROPPED, _ELSEWHERE = (0, 100, 190), (226, 140, 60), (222, 222, 222)
_RIGHT, _WRONG = (178, 190, 200), (205, 30, 40)


@dataclass(frozen=True)
class Layer:
    """A paint for N points: point n has the colour and the name number index[n]."""

    index: np.ndarray
    """uint8 (N,)."""
    names: Sequence[str]
    colours: np.ndarray
    """uint8 (K, 3), one for every name."""
    front: tuple[int, ...] = ()
    """Numbers of names whose points are drawn over all others, so that few of them are seen."""
    larger: float = 1.0
    """By how much those are drawn larger."""

    @property
    def rgb(self) -> np.ndarray:
        """uint8 (N, 3)."""
        return self.colours[self.index]

    def occurring(self) -> list[tuple[int, int]]:
        """(number of the name, how many points have it) of those that occur."""
        counts = np.bincount(self.index, minlength=len(self.names))
        return [(k, count) for k, count in enumerate(counts.tolist()) if count]


def class_colours(names: Sequence[str]) -> np.ndarray:
    """uint8 (K, 3): the customary colour of every known class, others spread over the hues."""
    made = []
    for k, name in enumerate(names):
        hue, value = (0.08 + k * 0.618) % 1.0, (0.85, 0.6)[k % 2]
        made.append(_KNOWN.get(name) or [round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.65, value)])
    return np.array(made, np.uint8).reshape(-1, 3)


def as_layer(
    values: np.ndarray | Layer, names: Sequence[str] | None = None, colours: np.ndarray | None = None
) -> Layer | np.ndarray:
    """A layer from labels or a mask; what is a layer or colours, uint8 (N, 3), is returned as it is.

    Args:
        values: bool (N,), kept or not; or integers (N,), classes, negative ones without a label; or a layer or colours.
        names: of the classes; by default their numbers.
        colours: uint8 (K, 3), one for every name; by default :func:`class_colours`.

    Raises UseError for other shapes, classes without a name or a colour, and more than 255 classes.
    """
    if isinstance(values, Layer):
        return values
    values = np.asarray(values)
    if values.ndim == 2 and values.shape[1] == 3 and values.dtype == np.uint8:
        return values
    if values.ndim != 1 or values.dtype.kind not in "biu":
        raise UseError(f"points are painted by labels (N,) or uint8 colours (N, 3), not {values.dtype} {values.shape}")
    if values.dtype == bool:
        return Layer(values.astype(np.uint8), ("dropped", "kept"), np.array([_DROPPED, _KEPT], np.uint8))
    names = [str(k) for k in range(int(values.max(initial=-1)) + 1)] if names is None else list(names)
    colours = class_colours(names) if colours is None else np.asarray(colours, np.uint8)
    if len(names) > 255:
        raise UseError(f"{len(names)} classes; pictures have colours for 255")
    if values.size and int(values.max()) >= len(names):
        raise UseError(f"label {int(values.max())}, but only {len(names)} classes have names")
    if colours.shape != (len(names), 3):
        raise UseError(f"{len(names)} classes with colours of shape {colours.shape}")
    index = np.where(values < 0, len(names), values).astype(np.uint8)
    return Layer(index, [*names, _UNLABELLED[0]], np.concatenate([colours, [_UNLABELLED[1]]]).astype(np.uint8))


def error_layer(prediction: np.ndarray, truth: np.ndarray) -> Layer:
    """Where prediction and truth, classes (N,), differ; points whose truth is negative count as neither.

    Raises UseError where they have different shapes.
    """
    prediction, truth = np.asarray(prediction), np.asarray(truth)
    if prediction.shape != truth.shape:
        raise UseError(f"a prediction of {prediction.shape} points and a truth of {truth.shape}")
    index = np.where(truth < 0, 2, prediction != truth).astype(np.uint8)
    colours = np.array([_RIGHT, _WRONG, _UNLABELLED[1]], np.uint8)
    return Layer(index, ("right", "wrong", _UNLABELLED[0]), colours, front=(1,), larger=1.3)


def kept_layer(mask: np.ndarray, points: int) -> Layer:
    """What a level keeps of `points` points: its mask, bool (N_l,), speaks of the first N_l of them.

    Raises UseError for a mask of more points.
    """
    mask = np.asarray(mask, bool).ravel()
    if len(mask) > points:
        raise UseError(f"a mask of {len(mask)} points for a cloud of {points}")
    index = np.full(points, 2, np.uint8)
    index[: len(mask)] = mask
    colours = np.array([_DROPPED, _KEPT, _ELSEWHERE], np.uint8)
    larger = float(np.clip((points / max(1, len(mask))) ** 0.25, 1.0, 2.6))
    return Layer(index, ("dropped", "kept", "not on this level"), colours, front=(0, 1), larger=larger)
