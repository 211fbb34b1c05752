"""What a trained network's file says of itself: task, classes, colours, how pictures are prepared.

The entries stand in the metadata of safetensors files, of torch's exported programs and of ONNX models, each as JSON:

    task         "segmentation", ...
    output       "classes" (scores of classes, the largest wins) or "probability" (one logit a pixel)
    classes      their names, in the order of the output's channels
    palette      [red, green, blue], 0 to 255, of each
    mean, std    of each channel, for values of 0 to 1: the network takes (value - mean) / std
    input_size   pictures with a smaller side are padded to it, centred, with the mean
    input_shape  of an exported file: [batch, channels, height, width], null where any size is taken
    ignore_index the number in the training's label files of pixels that do not count
    label_map    where these files had numbers of their own: the classes of the numbers, as --label_map takes them
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sparsemask.errors import UseError
from sparsemask.pictures.palette import class_palette
from sparsemask.VOC12.augment import IMAGENET_MEAN, IMAGENET_STD, Colours
from sparsemask.VOC12.label_map import LabelMap
from sparsemask.VOC12.lists import load_class_names
from sparsemask.VOC12.palette import IGNORE

OUTPUTS = ("classes", "probability")
_MOST_CLASSES, _MOST_SIZE, _LONGEST_NAME = 255, 1 << 16, 200


@dataclass(frozen=True)
class Description:
    """How pictures are prepared for a network with an output for every pixel, and what its output means.

    Attributes:
        classes: names of the classes.
        output: one of :data:`OUTPUTS`.
        palette: colours uint8 (number of classes, 3); empty: :func:`sparsemask.pictures.palette.class_palette`'s.
        colours: mean and deviation that pictures are normalised by.
        input_size: least side in pixels of what the network is given; smaller pictures are padded.
        task: its name.
        input_shape: sizes that an exported file takes, None where any; None altogether where all are open.
        ignore_index: the number in label files, 0 to 255, of pixels that do not count.
        label_map: classes of the numbers in label files; None: these are the classes.
    """

    classes: tuple[str, ...]
    output: str = "classes"
    palette: np.ndarray = field(default_factory=lambda: np.empty((0, 3), np.uint8), compare=False)
    colours: Colours = field(default_factory=Colours)
    input_size: int = 1
    task: str = "segmentation"
    input_shape: tuple[int | None, ...] | None = None
    ignore_index: int = IGNORE
    label_map: LabelMap | None = None

    def __post_init__(self) -> None:
        if not len(self.palette):
            object.__setattr__(self, "palette", class_palette(self.classes))

    @property
    def channels(self) -> int:
        """Channels of the network's output."""
        return 1 if self.output == "probability" else len(self.classes)

    def entries(self) -> dict[str, Any]:
        """What files hold, as plain values by name."""
        return {
            "task": self.task,
            "output": self.output,
            "classes": list(self.classes),
            "palette": self.palette.tolist(),
            "mean": list(self.colours.mean),
            "std": list(self.colours.std),
            "input_size": self.input_size,
            **({"ignore_index": self.ignore_index} if self.ignore_index != IGNORE else {}),
            **({"label_map": self.label_map.text()} if self.label_map is not None else {}),
        }

    @classmethod
    def from_entries(cls, entries: Mapping[str, Any], path: object) -> Description | None:
        """The description among a file's entries; None where it has none.

        Args:
            entries: plain values by name, of any origin.
            path: how error messages begin.

        Raises:
            UseError: an entry cannot be what it should.
        """
        if "output" not in entries or "classes" not in entries:
            return None

        def refuse(name: str, expected: str) -> UseError:
            return UseError(f"{path}: its description says {name} = {repr(entries.get(name)):.60}, expected {expected}")

        if entries["output"] not in OUTPUTS:
            raise refuse("output", " or ".join(OUTPUTS))
        names = entries["classes"]
        if not _list_of(names, str) or not 1 <= len(names) <= _MOST_CLASSES:
            raise refuse("classes", f"1 to {_MOST_CLASSES} names")
        if any(len(name) > _LONGEST_NAME or not name.isprintable() for name in names):
            raise refuse("classes", f"names in one line of at most {_LONGEST_NAME} letters")
        palette = entries.get("palette")
        if palette is not None:
            rows = isinstance(palette, list) and len(palette) == len(names)
            if not rows or not all(_list_of(c, int) and len(c) == 3 and 0 <= min(c) <= max(c) < 256 for c in palette):
                raise refuse("palette", f"{len(names)} colours of three numbers 0 to 255")
        mean, std = entries.get("mean", list(IMAGENET_MEAN)), entries.get("std", list(IMAGENET_STD))
        for name, values, low in (("mean", mean, -1e3), ("std", std, 1e-6)):
            if not _list_of(values, int | float) or len(values) != 3 or not all(low <= v <= 1e3 for v in values):
                raise refuse(name, f"three numbers from {low:g} to 1000")
        size, task = entries.get("input_size", 1), entries.get("task", "segmentation")
        if not _whole(size) or not 1 <= size <= _MOST_SIZE:
            raise refuse("input_size", f"a whole number from 1 to {_MOST_SIZE}")
        shape = entries.get("input_shape")
        if shape is not None:
            sizes = isinstance(shape, list) and len(shape) == 4
            if not sizes or not all(n is None or (_whole(n) and 1 <= n <= _MOST_SIZE) for n in shape):
                raise refuse("input_shape", "four sizes, null where any is taken")
        ignored, mapping = entries.get("ignore_index", IGNORE), entries.get("label_map")
        if not _whole(ignored) or not 0 <= ignored <= IGNORE:
            raise refuse("ignore_index", f"a whole number from 0 to {IGNORE}")
        label_map = None
        if mapping is not None:
            try:
                label_map = LabelMap.of_text(mapping if isinstance(mapping, str) else "")
                label_map.check_ignored(ignored)
            except UseError:
                raise refuse("label_map", "a map in one line") from None
            if len(label_map.names) != len(names):
                raise refuse("label_map", f"{len(names)} classes")
        return cls(
            classes=tuple(names),
            output=entries["output"],
            palette=class_palette(names) if palette is None else np.array(palette, np.uint8),
            colours=Colours(tuple(mean), tuple(std)),
            input_size=size,
            task=task if isinstance(task, str) else "segmentation",
            input_shape=None if shape is None else tuple(shape),
            ignore_index=ignored,
            label_map=label_map,
        )

    @property
    def numbers(self) -> tuple[int, ...]:
        """The number of each class in the training's label files; without a map that of the class."""
        return tuple(range(len(self.classes))) if self.label_map is None else self.label_map.numbers

    @classmethod
    def assumed(cls, channels: int, classes: Sequence[str] | None = None, input_size: int = 1) -> Description:
        """What is assumed of a network that says nothing: ImageNet's mean and deviation, VOC's names of 21 classes.

        Args:
            channels: of its output; one channel is a probability.
            classes: their names, if they are known.
        """
        if channels == 1:
            return cls(("no", "yes"), output="probability", task="maps", input_size=input_size)
        names = tuple(classes) if classes is not None else tuple(load_class_names(None, channels))
        return cls(names, input_size=input_size)


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _list_of(values: object, kind: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, kind) and not isinstance(v, bool) for v in values)
