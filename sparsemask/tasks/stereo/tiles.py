"""Disparities of large pairs tile by tile, within a budget of memory.

A tile is computed with OVERLAP pixels around it, and with additional columns on its left, as many as there are
disparities: there lies what the right image shows of the tile. The receptive field of the hourglasses is larger, so
that the result differs slightly from that of the whole pair.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.tasks.stereo.batch import MULTIPLE, StereoPair

OVERLAP = 64  # px
SMALLEST = 64  # px, of a tile's sides
# Peaks of the process in evaluation, float32 (bench/stereo.py memory), rounded up: of a voxel of a quarter's size, of a
# pixel, and whatever the size. That is torch, weights as packed for several kernels, and what the allocator holds back
# after tiles of other shapes.
_VOXEL, _PIXEL, _ALWAYS = 420, 600, 850e6


class Box(NamedTuple):
    """Rows top to bottom and columns left to right, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    def of(self, values: Tensor, part: int = 1) -> Tensor:
        """The part of (..., H, W) in the box, of values at 1/part of its size; a view."""
        return values[..., self.top // part : self.bottom // part, self.left // part : self.right // part]

    def within(self, outer: Box) -> Box:
        """The box as seen from the corner of one around it."""
        return Box(self.top - outer.top, self.bottom - outer.top, self.left - outer.left, self.right - outer.left)


def memory(height: int, width: int, maxdisp: int) -> float:
    """Estimated peak memory in bytes of a process that runs a network on an untiled pair."""
    pixels = height * width
    return _ALWAYS + pixels * (_PIXEL + _VOXEL * maxdisp / 64)


def outer(box: Box, height: int, width: int, maxdisp: int) -> Box:
    """A tile with the margin that is computed around it."""
    return Box(
        max(0, box.top - OVERLAP), min(height, box.bottom + OVERLAP),
        max(0, box.left - OVERLAP - maxdisp), min(width, box.right + OVERLAP),
    )  # fmt: skip


def boxes(height: int, width: int, tile: tuple[int, int]) -> list[Box]:
    """Tiles of `tile` (height, width) pixels at most, about equal, multiples of 16, that make up an image."""
    rows, columns = (_cuts(side, most) for side, most in zip((height, width), tile, strict=True))
    return [Box(*row, *column) for row in rows for column in columns]


def fitting_tile(height: int, width: int, maxdisp: int, budget: float) -> tuple[int, int]:
    """The largest tile (height, width) with which a pair stays within `budget` bytes; the whole where it fits.

    Raises:
        UseError: no tile does; the smallest needs more.
    """
    if memory(height, width, maxdisp) <= budget:
        return height, width
    best = None
    for tall in _sides(height):
        for wide in _sides(width):
            parts = [outer(box, height, width, maxdisp) for box in boxes(height, width, (tall, wide))]
            if max(memory(b.bottom - b.top, b.right - b.left, maxdisp) for b in parts) <= budget:
                work = sum((b.bottom - b.top) * (b.right - b.left) for b in parts)
                best = min(best or (work, tall, wide), (work, tall, wide))
    if best is None:
        least = [outer(box, height, width, maxdisp) for box in boxes(height, width, (SMALLEST, SMALLEST))]
        needed = max(memory(b.bottom - b.top, b.right - b.left, maxdisp) for b in least) / 1e9
        raise UseError(
            f"{budget / 1e9:.2g} GB are too few for --maxdisp {maxdisp}: even tiles of {SMALLEST} pixels need about "
            f"{needed:.1f} GB"
        )
    return best[1:]


@torch.no_grad()
def run_tiles(
    run: Callable[[StereoPair], Tensor], pair: StereoPair, maxdisp: int, tile: tuple[int, int], masks: Callable = list
) -> tuple[Tensor, list[Tensor]]:
    """Disparities of a padded pair, computed in tiles.

    Args:
        run: the network, from a pair to disparities (B, H, W).
        pair: the padded pair.
        maxdisp: number of disparities of the network.
        tile: (height, width) of the tiles in pixels.
        masks: called after each call of `run`; returns voxel masks (B, 1, D, h, w) at fractions of the pair's size.

    Returns:
        The disparities (B, H, W), and the voxel masks of the whole pair.
    """
    height, width = pair.shape[-2:]
    disparities = torch.empty(len(pair), height, width, device=pair.device)
    voxel_masks: list[Tensor] = []
    for box in boxes(height, width, tile):
        around = outer(box, height, width, maxdisp)
        inner = box.within(around)
        tile_disparities = run(pair.map(lambda image, around=around: around.of(image).contiguous()))
        box.of(disparities).copy_(inner.of(tile_disparities))
        for number, mask in enumerate(masks()):
            scale = tile_disparities.shape[-1] // mask.shape[-1]
            if number == len(voxel_masks):
                voxel_masks.append(mask.new_empty(*mask.shape[:-2], height // scale, width // scale))
            box.of(voxel_masks[number], scale).copy_(inner.of(mask, scale))
    return disparities, voxel_masks


def _cuts(side: int, most: int) -> list[tuple[int, int]]:
    count = -(-side // max(most - most % MULTIPLE, MULTIPLE))
    units = side // MULTIPLE
    ends = [units * k // count * MULTIPLE for k in range(count + 1)]
    return list(zip(ends[:-1], ends[1:], strict=True))


def _sides(side: int) -> list[int]:
    """Sides of tiles to try: the whole, its half, its third, ..., in multiples of 16."""
    sides = {-(-side // (n_tiles * MULTIPLE)) * MULTIPLE for n_tiles in range(1, max(1, side // SMALLEST) + 1)}
    return sorted(sides, reverse=True)
