"""A pair with its truth, from files that must fit together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sparsemask.errors import UseError
from sparsemask.tasks.stereo.files import read_disparity, read_picture
from sparsemask.VOC12.images import exif_words


class PairFiles(NamedTuple):
    """Where a pair lies.

    disparity: the left picture's, None where there is none. noc: a disparity map that has values at non-occluded
    pixels only, or a picture that is 255 there. objects: a picture that is above 0 on the foreground (KITTI 2015).
    """

    name: str
    left: Path
    right: Path
    disparity: Path | None = None
    noc: Path | None = None
    objects: Path | None = None


@dataclass(frozen=True)
class Frame:
    """A pair in memory.

    left, right: uint8 (H, W, 3). disparity: float32 (H, W) in pixels, 0 = no value. noc: bool (H, W), where the right
    picture shows the same point, or None if nobody says. foreground: bool (H, W), or None.
    """

    name: str
    left: np.ndarray
    right: np.ndarray
    disparity: np.ndarray
    noc: np.ndarray | None = None
    foreground: np.ndarray | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.left.shape[:2]


def read_pictures(left: Path | str, right: Path | str) -> tuple[np.ndarray, np.ndarray]:
    """Both pictures, uint8 (H, W, 3); UseError where their sizes differ."""
    found = read_picture(left), read_picture(right)
    if found[0].shape != found[1].shape:
        a, b = (_size(one) for one in found)
        turned = [exif_words(one) for one in (right, left)]
        raise UseError(
            f"{right}: {b} pixels{turned[0]}, but the left picture {left} has {a}{turned[1]}: a pair has one size"
        )
    return found


def read_frame(files: PairFiles) -> Frame:
    """Read a pair; UseError where a file is missing or broken, sizes differ, or disparities are of another scale.

    Another scale shows in values wider than the picture, or all below one pixel.
    """
    left, right = read_pictures(files.left, files.right)
    if files.disparity is None:
        return Frame(files.name, left, right, np.zeros(left.shape[:2], np.float32))
    truth = read_disparity(files.disparity)
    _same_size(truth, files.disparity, left, files.left)
    most = float(truth.max())
    if most > left.shape[1] or 0 < most < 1:
        said = f"the largest is {most:.4g} px" + (f", the picture {left.shape[1]} wide" if most > 1 else "")
        raise UseError(f"{files.disparity}: of another scale: {said} (16-bit PNG hold 256 times the pixels)")
    return Frame(files.name, left, right, truth, _seen(files, left), _foreground(files, left))


def _seen(files: PairFiles, left: np.ndarray) -> np.ndarray | None:
    if files.noc is None:
        return None
    # Middlebury's masks are pictures: 255 seen, 128 occluded, 0 unknown.
    mask = files.noc.stem.startswith("mask")
    found = read_picture(files.noc)[..., 0] == 255 if mask else read_disparity(files.noc) > 0
    _same_size(found, files.noc, left, files.left)
    return found


def _foreground(files: PairFiles, left: np.ndarray) -> np.ndarray | None:
    if files.objects is None:
        return None
    found = read_picture(files.objects)[..., 0] > 0
    _same_size(found, files.objects, left, files.left)
    return found


def _same_size(values: np.ndarray, path: Path, left: np.ndarray, picture: Path) -> None:
    if values.shape != left.shape[:2]:
        turned = exif_words(picture, values.shape)
        raise UseError(f"{path}: {_size(values)} values for the {_size(left)} pixels of {picture}{turned}")


def _size(array: np.ndarray) -> str:
    return f"{array.shape[1]}x{array.shape[0]}"
