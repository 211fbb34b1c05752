"""Real inputs that integers of an exported file are calibrated on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.exporting import Exportable
from sparsemask.prediction.description import Description
from sparsemask.spaces.protocols import PreparesImages, Space
from sparsemask.tasks.super_resolution.folders import find_folder, pictures
from sparsemask.VOC12.images import read_picture

MOST = 64
"""Pictures that are taken of a folder, evenly spread over it."""
LARGEST, LEAST = 128, 32
"""Longest side that is taken of a picture, its middle, and the shortest side that a picture may have."""


def calibration_inputs(folder: str | None, space: Space, exportable: Exportable, about: Mapping) -> list[Tensor]:
    """Return pictures of a folder as a network's inputs, (1, 3, H, W) each.

    Args:
        folder: of pictures as the network will be given them; a name is also looked for in $SPARSEMASK_DATA.
        space: of the network.
        exportable: the network.
        about: what its files say of themselves.

    Raises:
        UseError: no folder, no pictures, a picture that is damaged or too small, or a network of other inputs.
    """
    described = Description.from_entries(about, "--precision int8")
    known = isinstance(space, PreparesImages) or described is not None
    if list(exportable.inputs) != ["picture"] or not known:
        raise UseError(f"--precision int8: networks of space '{space.name}' take no pictures that can be read here")
    paths = pictures(find_folder(folder or "", None, "--calibrate"))
    chosen = [paths[k] for k in np.unique(np.linspace(0, len(paths) - 1, min(MOST, len(paths))).round().astype(int))]
    sizes = exportable.input_shape
    assert sizes is not None
    return [_input(path, space, described, sizes[2:], exportable) for path in chosen]


def _input(
    path: Path, space: Space, described: Description | None, fixed: list[int | None], exportable: Exportable
) -> Tensor:
    """The middle of one picture, of the size that the file is for or of at most LARGEST pixels."""
    pixels = read_picture(path)
    least = [side or LEAST for side in fixed]
    if any(side < limit for side, limit in zip(pixels.shape, least, strict=False)):
        size, wanted = (f"{sides[1]}x{sides[0]}" for sides in (pixels.shape, least))
        raise UseError(f"--calibrate {path}: {size} pixels, calibration takes pictures of {wanted} at least")
    sides = [side or min(have, LARGEST) for side, have in zip(fixed, pixels.shape, strict=False)]
    top, left = ((have - side) // 2 for have, side in zip(pixels.shape, sides, strict=False))
    middle = pixels[top : top + sides[0], left : left + sides[1]]
    if isinstance(space, PreparesImages):
        prepared = space.prepare(np.ascontiguousarray(middle, np.float32))
    else:
        assert described is not None
        prepared = described.colours.normalise(middle)[None]
    fitted = exportable.fitted(prepared.float())
    assert isinstance(fitted, torch.Tensor)
    return fitted
