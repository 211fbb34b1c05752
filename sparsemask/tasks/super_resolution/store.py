"""Decoded pairs of images: in memory where they fit, else from their files, or decoded once onto the disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from sparsemask import datasets
from sparsemask.containers import map_npy
from sparsemask.engine.distributed import warn
from sparsemask.errors import UseError, choose, describe
from sparsemask.files import atomic_write
from sparsemask.resize import imresize
from sparsemask.tasks.super_resolution.folders import Pair
from sparsemask.VOC12.images import exif_words, picture_size, read_picture

MEMORY = 2 << 30  # bytes of images kept decoded
KINDS = ("auto", "img", "sep")  # the public code's words: from the files each time, or each decoded once
_SLOW = 256 << 20  # bytes whose decoding takes long enough to be announced
_VERSION = 2  # of what is cached on the disk: raise it when any pixel changes


class PictureStore:
    """Pairs of images, read once or each time.

    Args:
        pairs: their files. Without a low-resolution one it is made by MATLAB's bicubic from the high-resolution
            image, cropped to whole multiples of the scale.
        scale: high over low resolution.
        kind: "img": decoded each time. "sep": decoded once into the toolkit's cache folder and mapped from there.
            "auto": kept in memory if all fit into `memory` bytes, else "img", or "sep" where images are to be made.

    Raises:
        UseError: a file that is no image, or a pair whose sizes do not fit together (only headers are read here);
            at reading: a truncated file.
    """

    def __init__(self, pairs: Sequence[Pair], scale: int, kind: str = "auto", memory: int = MEMORY):
        choose(kind, KINDS, "way to keep pictures (--ext)")
        self.pairs, self.scale = list(pairs), int(scale)
        self.sizes = [self._size(pair) for pair in self.pairs]
        self.bytes = sum(3 * h * w * (1 + self.scale**2) for h, w in self.sizes)
        needs_reduction = any(pair.lr is None for pair in self.pairs)
        if kind == "auto":
            kind = "memory" if self.bytes <= memory else "sep" if needs_reduction else "img"
        self.kind = kind
        self._kept: list[tuple[np.ndarray, np.ndarray] | None] = [None] * len(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def fill(self) -> None:
        """Decode what is to be kept in memory, so that processes started later share it."""
        if self.kind == "memory":
            if self.bytes > _SLOW:
                warn(f"decoding {len(self)} pictures into memory ({self.bytes / 1e9:.1f} GB) ...")
            for index in range(len(self)):
                self[index]

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """(low, high) resolution, uint8 (h, w, 3) and (scale * h, scale * w, 3); not to be written to."""
        if self.kind == "memory":
            if self._kept[index] is None:
                self._kept[index] = self._read(index)
            return self._kept[index]
        return self._read(index)

    def _read(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        pair, (h, w), s = self.pairs[index], self.sizes[index], self.scale
        if self.kind == "sep":
            hr = _mapped(pair.hr, "", lambda: read_picture(pair.hr))[: s * h, : s * w]
            if pair.lr is None:
                return _mapped(pair.hr, f"/{s}", lambda: imresize(hr, 1 / s)), hr
            return _mapped(pair.lr, "", lambda: read_picture(pair.lr))[:h, :w], hr
        hr = np.ascontiguousarray(read_picture(pair.hr)[: s * h, : s * w])
        return imresize(hr, 1 / s) if pair.lr is None else read_picture(pair.lr)[:h, :w], hr

    def _size(self, pair: Pair) -> tuple[int, int]:
        """Height and width of the low-resolution image, or of what of it the other one covers."""
        s = self.scale
        height, width = picture_size(pair.hr)
        if min(height, width) < s:
            raise UseError(f"{pair.hr}: {width}x{height} pixels are too few for --scale {s}")
        if pair.lr is None:
            return height // s, width // s
        h, w = picture_size(pair.lr)
        # Sizes that the scale does not divide are rounded either way by those who made the images.
        if abs(s * h - height) >= s or abs(s * w - width) >= s:
            turned = exif_words(pair.lr) or exif_words(pair.hr)
            hint = f"; the {'low' if exif_words(pair.lr) else 'high'}-resolution one is{turned}" if turned else ""
            raise UseError(f"{pair.lr}: {w}x{h} pixels times {s} do not fit {pair.hr} of {width}x{height}{hint}")
        return min(h, height // s), min(w, width // s)


def _mapped(path: Path, variant: str, make: Callable[[], np.ndarray]) -> np.ndarray:
    """The result of `make` for a file, cached on the disk, remade where the file changed or the copy is damaged."""
    try:
        status = path.stat()
        key = f"{_VERSION} {path.resolve()}{variant} {status.st_mtime_ns} {status.st_size}"
        cached = datasets.cache() / "pictures" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.npy"
        try:
            return map_npy(cached)
        except UseError:
            image = make()
        with atomic_write(cached) as file:
            np.save(file, image, allow_pickle=False)
    except OSError as error:
        raise UseError(describe(error) or f"{path}: {error}") from None
    return image
