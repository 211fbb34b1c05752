"""Augmentation by a user's own code, before the scale, crop and flip of training.

``--augment package.module:name`` names one of these:

- a function of (image, label), or (image, label, rng): uint8 (H, W, 3) and uint8 (H, W), in which 255 does not count;
  it returns both, of one size, which may be another;
- a transform of albumentations, such as a ``Compose``, which is called with ``image=`` and ``mask=``;
- a transform of ``torchvision.transforms.v2``, which is called with a ``tv_tensors.Image`` and a ``tv_tensors.Mask``.

What it draws from Python's, NumPy's or torch's global generators, or from its own that can be seeded, depends on the
run's seed and the number of the sample alone, so that resumed runs stay exact.
"""

from __future__ import annotations

import importlib
import inspect
import random
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from sparsemask.engine.randomness import seeded
from sparsemask.errors import UseError, one_line
from sparsemask.plugins import imported, is_own, trust
from sparsemask.tasks.dense.data import as_label

_Call = Callable[[np.ndarray, np.ndarray, np.random.Generator], Any]


@runtime_checkable
class _TakesGenerators(Protocol):
    """Albumentations since 1.4.23."""

    def set_random_state(self, random_generator: np.random.Generator, py_random: random.Random) -> None:
        """Draw from these from now on."""


@runtime_checkable
class _TakesSeed(Protocol):
    """Albumentations since 1.4.19."""

    def set_random_seed(self, seed: int) -> None:
        """Seed its generators."""


class Augmentation:
    """A user's augmentation as :class:`sparsemask.VOC12.dataset.SegmentationDataset` calls it.

    Args:
        name: ``package.module:name``; the code is imported at the first call, where the user named it
            (:mod:`sparsemask.plugins`).
    """

    def __init__(self, name: str):
        self.name = name
        self._call: _Call | None = None

    def __getstate__(self) -> dict[str, str]:
        return {"name": self.name}

    def __setstate__(self, state: dict[str, str]) -> None:  # in a loader process, which is told by this one
        self.__init__(state["name"])  # type: ignore[misc]
        trust(self.name)

    def __call__(self, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """The augmented pair; UseError where the code fails or gives no such pair."""
        if self._call is None:
            self._call = calling(imported(self.name, "transform"))
        try:
            with seeded(int(rng.integers(2**32))):
                result = self._call(image, label, rng)
        except Exception as error:  # a user's code may fail in any way
            if isinstance(error, UseError):
                raise
            height, width = label.shape
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise UseError(
                f"--augment {self.name}: failed on a picture of {width}x{height} pixels ({reason})"
            ) from error
        return self._checked(result)

    def _checked(self, result: Any) -> tuple[np.ndarray, np.ndarray]:
        from sparsemask.prediction import as_rgb

        if isinstance(result, Mapping):
            result = (result.get("image"), result.get("mask"))
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise UseError(f"--augment {self.name}: gave {type(result).__name__}, expected (image, label)")
        try:
            image, label = as_rgb(result[0]), as_label(result[1])
        except UseError as error:
            raise UseError(f"--augment {self.name}: {error}") from None
        if image.shape[:2] != label.shape:
            raise UseError(
                f"--augment {self.name}: gave an image of {image.shape[:2]} and a label of {label.shape} pixels; "
                "both must change alike"
            )
        return image, label


def calling(code: Any) -> _Call:
    """How the code is called, by what it is; see the module's docstring."""
    if any(base.__module__.partition(".")[0] == "torchvision" for base in type(code).__mro__):
        return lambda image, label, _: _by_tensors(code, image, label)
    try:
        parameters = inspect.signature(code).parameters
    except ValueError:  # code that is not Python's
        return lambda image, label, _: code(image, label)
    kinds = {parameter.kind for parameter in parameters.values()}
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if inspect.Parameter.VAR_KEYWORD in kinds and not kinds & set(positional):
        return lambda image, label, rng: _by_names(code, image, label, rng)
    if "rng" in parameters:
        return lambda image, label, rng: code(image, label, rng=rng)
    return lambda image, label, _: code(image, label)


def _by_names(code: Any, image: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> Any:
    """As albumentations is called; its generators are its own."""
    seed = int(rng.integers(2**32))
    if isinstance(code, _TakesGenerators):
        code.set_random_state(np.random.default_rng(seed), random.Random(seed))
    elif isinstance(code, _TakesSeed):
        code.set_random_seed(seed)
    return code(image=image, mask=label)


def _by_tensors(code: Any, image: np.ndarray, label: np.ndarray) -> Any:
    """As transforms of torchvision are called."""
    kinds = importlib.import_module("torchvision.tv_tensors")
    picture = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    return code(kinds.Image(picture), kinds.Mask(torch.from_numpy(np.ascontiguousarray(label))))


def check_name(name: str) -> None:
    """Raise a UseError where --augment names no code."""
    if not is_own(name):
        raise UseError(f"--augment {name}: expected your own code by name, package.module:name")
