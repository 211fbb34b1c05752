"""Bicubic resizing with MATLAB's numbers: super-resolution's low-resolution images are made by its `imresize`.

Bicubic resizing of other libraries differs in the kernel (a = -0.75, not -0.5), the missing low-pass filter or the
border; scores on such images are not comparable.
"""

from __future__ import annotations

import functools
import math

import numpy as np
from scipy.sparse import csr_array

from sparsemask.errors import UseError

_WIDTH = 4  # of the kernel's support, in pixels


def imresize(
    image: np.ndarray, scale: float | None = None, size: tuple[int, int] | None = None, antialias: bool = True
) -> np.ndarray:
    """Resize an image as MATLAB's ``imresize(image, scale)`` or ``imresize(image, size)``, method bicubic.

    Args:
        image: (H, W) or (H, W, C), uint8 or floating.
        scale: factor on both sides; the result has ceil(scale * H) rows and ceil(scale * W) columns.
        size: (rows, columns) of the result, instead of `scale`.
        antialias: widen the kernel by 1 / scale when making smaller (MATLAB's default).

    Returns:
        The image in the same type: uint8 rounded (halves up) and clipped after either pass, as MATLAB does;
        floating values neither rounded nor clipped, computed in float64.

    Raises:
        UseError: another type or shape, an empty image, or a scale or size that is not positive.

    Kernel: Keys, "Cubic convolution interpolation for digital image processing", 1981, a = -1/2.
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or 0 in image.shape or not (image.dtype == np.uint8 or image.dtype.kind == "f"):
        raise UseError(f"imresize takes uint8 or floating (H, W) or (H, W, C), not {image.dtype} {image.shape}")
    if (scale is None) == (size is None):
        raise UseError("imresize takes a scale or a size, one of the two")
    if size is None:
        if not 0 < scale < math.inf:
            raise UseError(f"imresize: scale {scale} must be a finite number above 0")
        factors = (float(scale), float(scale))
        size = tuple(math.ceil(scale * side) for side in image.shape[:2])
    else:
        size = tuple(int(side) for side in size)
        if len(size) != 2 or min(size) < 1:
            raise UseError(f"imresize: size {size} must be rows and columns of at least 1")
        factors = tuple(new / old for new, old in zip(size, image.shape[:2], strict=True))
    # MATLAB begins with the side that shrinks most, rows first among equals; the rounding between shows the order.
    for axis in sorted((0, 1), key=lambda a: factors[a]):
        image = _along(image, axis, _matrix(image.shape[axis], size[axis], factors[axis], antialias))
    return image


def _along(image: np.ndarray, axis: int, matrix: csr_array) -> np.ndarray:
    """Apply a matrix (new, old) to one axis of an image, keeping its type."""
    moved = np.moveaxis(image, axis, 0)
    flat = moved.reshape(moved.shape[0], -1).astype(np.float64)
    resized = (matrix @ flat).reshape(matrix.shape[0], *moved.shape[1:])
    if image.dtype == np.uint8:
        resized = np.clip(np.floor(resized + 0.5), 0, 255)
    return np.ascontiguousarray(np.moveaxis(resized.astype(image.dtype), 0, axis))


@functools.lru_cache(maxsize=64)
def _matrix(old: int, new: int, scale: float, antialias: bool) -> csr_array:
    """Weights (new, old) of one axis: pixel centres at whole numbers from 1, the image mirrored at its rim."""
    narrow = min(scale, 1.0) if antialias else 1.0
    width = _WIDTH / narrow
    centres = (np.arange(new) + 1) / scale + 0.5 * (1 - 1 / scale)
    taps = np.floor(centres - width / 2)[:, None] + np.arange(math.ceil(width) + 2)
    weights = _cubic(narrow * (centres[:, None] - taps))
    weights /= weights.sum(1, keepdims=True)
    mirrored = np.concatenate([np.arange(old), np.arange(old)[::-1]])
    columns = mirrored[(taps.astype(np.int64) - 1) % (2 * old)]
    rows = np.broadcast_to(np.arange(new)[:, None], columns.shape)
    matrix = csr_array((weights.ravel(), (rows.ravel(), columns.ravel())), shape=(new, old))  # sums what falls together
    matrix.eliminate_zeros()
    return matrix


def _cubic(x: np.ndarray) -> np.ndarray:
    a = np.abs(x)
    near = (1.5 * a - 2.5) * a * a + 1
    far = ((-0.5 * a + 2.5) * a - 4) * a + 2
    return np.where(a <= 1, near, np.where(a <= 2, far, 0.0))
