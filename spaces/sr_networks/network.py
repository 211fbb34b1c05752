"""The contract of dense super-resolution networks, and what their layouts have in common."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.errors import UseError

RGB = 3
LARGEST_SCALE = 8
State = Mapping[str, Tensor]


class SRNetwork(nn.Module):
    """A super-resolution network of standard operators, under the names of its public checkpoints.

    A subclass sets the class attributes, `scale` and `config`, and writes `describe`, `radius` and `compute`.
    """

    architecture: ClassVar[str]
    """The name that people know it by."""
    source: ClassVar[str]
    """Authors, year and arXiv number."""
    value_range: ClassVar[float] = 1.0
    """Largest value of the images that :meth:`compute` takes and gives."""
    smallest: ClassVar[int] = 1
    """Least height and width that :meth:`compute` takes; smaller images are padded by their last row and column."""
    smallest_traced: ClassVar[int] = 8
    """Least height and width of images for which one program can be traced."""
    multiple: ClassVar[int] = 1
    """Tiles of an image begin at multiples of so many pixels."""
    scale: int
    """Height (width) of the output over that of the input."""
    config: dict[str, Any]
    """The arguments that build this network again."""

    @classmethod
    @abstractmethod
    def describe(cls, state: State) -> dict[str, Any] | None:
        """Determine the arguments of the network whose weights these are; None for those of another architecture.

        Args:
            state: bare names, as :meth:`rename` gives them.

        Raises:
            UseError: a variant of the architecture that is not known; the message says which, without the file.
        """

    @classmethod
    def rename(cls, state: State) -> State:
        """Translate other public layouts of the same architecture into this one; default: there are none."""
        return state

    @property
    @abstractmethod
    def radius(self) -> int | None:
        """Pixels of the input around an output pixel that it depends on; None where that is the whole image."""

    @abstractmethod
    def compute(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) of 0 to `value_range` to (N, 3, s·H, s·W), not clamped."""

    @property
    def title(self) -> str:
        """Architecture, scale and size in a few words."""
        sizes = ", ".join(f"{key} {value}" for key, value in self.config.items() if key != "scale")
        return f"{self.architecture} x{self.scale} ({sizes})"

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, 3, H, W) of 0 to 255 to (N, 3, s·H, s·W), any H and W; not clamped."""
        return self.enlarge(images, self.compute)

    def enlarge(self, images: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Compute as :meth:`forward`, with a function in place of :meth:`compute`."""
        height, width = images.shape[-2:]
        short = [max(0, self.smallest - side) for side in (width, height)]
        if any(short):
            images = F.pad(images, (0, short[0], 0, short[1]), mode="replicate")
        output = compute(self.normalised(images))
        output = output if self.value_range == 255 else output * (255 / self.value_range)
        return output[..., : height * self.scale, : width * self.scale] if any(short) else output

    def normalised(self, images: Tensor) -> Tensor:
        """Images of 0 to 255 as :meth:`compute` takes them."""
        return images if self.value_range == 255 else images * (self.value_range / 255)

    def fold(self) -> None:
        """Merge branches that are parallel only in training, in place; default: there are none."""


class Span(NamedTuple):
    """A part of a side: what is kept of it, what is computed for that, and where the kept lies in the computed."""

    kept: slice
    outer: slice
    inner: slice


class Stage(NamedTuple):
    """A part of a :class:`StagedNetwork`, from features (N, C, H, W) to features of the same shape."""

    run: Callable[[Tensor], Tensor]
    """Depends on `radius` pixels around."""
    radius: int
    finish: Callable[[Tensor, int], None] | None = None
    """What depends on the whole image: changes the features of `run` in place, (features, rows at a time)."""
    module: str = ""
    """Name of the module that `run`, and `finish` if there is one, are of."""
    finishing: str = ""
    """Name of the module inside of it whose work `finish` does."""
    place: Callable[[Span, Span, torch.Size], None] | None = None
    """Told of every call of `run` whose output was taken: rows, columns, shape of all features."""


class StagedNetwork(SRNetwork):
    """A network of stages with one feature map between them.

    Large images are computed stage by stage, each stage a band of rows at a time and in place, so that one feature map
    of the whole image suffices and the result is exact however far the network sees
    (:mod:`sparsemask.spaces.sr_networks.tiles`).
    """

    end_radius: ClassVar[int] = 2

    @property
    def radius(self) -> int | None:
        """None: stages are computed one after the other."""
        return None

    @abstractmethod
    def begin(self, x: Tensor) -> Tensor:
        """Features (N, C, H, W) of images of 0 to `value_range`; depends on one pixel around."""

    @abstractmethod
    def stages(self) -> Iterable[Stage]:
        """The stages in order."""

    @abstractmethod
    def end(self, features: Tensor, x: Tensor) -> Tensor:
        """Output images from the last stage's features and the input; depends on `end_radius` pixels around."""


def conv(inputs: int, outputs: int, kernel: int = 3) -> nn.Conv2d:
    """A convolution that keeps height and width."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)


def interpolate_nearest(x: Tensor, scale: int) -> Tensor:
    """Images (N, C, H, W) with every pixel repeated, (N, C, s·H, s·W)."""
    return x if scale == 1 else F.interpolate(x, scale_factor=float(scale), mode="nearest")


def convolution(state: State, name: str, kernel: int | None = None) -> tuple[int, int, int]:
    """(outputs, inputs, kernel size) of a convolution in a state dict.

    Raises:
        UseError: there is none of this name, or none with a square kernel (of this size).
    """
    weight = state.get(f"{name}.weight")
    if weight is None or weight.ndim != 4 or weight.shape[2] != weight.shape[3]:
        shape = "absent" if weight is None else f"of shape {tuple(weight.shape)}"
        raise UseError(f"{name}.weight is {shape}, expected a convolution with a square kernel")
    outputs, inputs, size, _ = weight.shape
    if kernel not in (None, size):
        raise UseError(f"{name}.weight has a kernel of {size}x{size}, expected {kernel}x{kernel}")
    return outputs, inputs, size


def colours(inputs: int) -> None:
    """Check that a network takes RGB; UseError for any other number of channels."""
    if inputs != RGB:
        raise UseError(f"it takes images of {inputs} channel(s), RGB is what is known")


def shuffle_scale(outputs: int) -> int:
    """The scale of a last convolution with s·s·3 outputs in front of a pixel shuffle; UseError where there is none."""
    scale = round(math.sqrt(outputs / RGB))
    if RGB * scale**2 != outputs or not 1 <= scale <= LARGEST_SCALE:
        raise UseError(
            f"its last convolution has {outputs} outputs, expected 3·s·s for a scale s up to {LARGEST_SCALE}"
        )
    return scale


def count(state: State, pattern: str, first: int = 0) -> int:
    """Number of parts in a row whose names match a pattern with one group, their number.

    Raises:
        UseError: numbers are missing in between, or the first.
    """
    numbers = {int(match[1]) for key in state if (match := re.match(pattern, key))}
    if numbers != set(range(first, first + len(numbers))):
        raise UseError(f"parts are missing: those there are numbered {_some(numbers)}")
    return len(numbers)


def has_all(state: State, names: Iterable[str]) -> bool:
    """Whether a state dict has all of these names."""
    return all(name in state for name in names)


def _some(numbers: Collection[int]) -> str:
    first = sorted(numbers)[:4]
    return ", ".join(map(str, first)) + (", ..." if len(numbers) > len(first) else "")
