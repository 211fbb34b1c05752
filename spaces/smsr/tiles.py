"""Super-resolution of large images in tiles, and the self-ensemble.

A tile's output depends on its surroundings in two ways. Convolutions and mask branches of a module see 12 pixels around
a location, so that tiles overlap by that much and the overlap is discarded. The channel attention averages over the
whole image: a tile's own average would give each tile its own contrast and visible seams. The network is therefore run
module by module: features between modules are stored whole, a module is computed tile by tile, its average is taken
over all tiles, and then the attention is applied. The result equals the untiled network's up to rounding, in one pass,
without the 34 pixels of overlap that whole networks would need. Three feature maps are stored; the working memory of
the modules (about three times that) shrinks to a tile's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.spaces.smsr.network import SMSR
from sparsemask.sparse import kept_fraction

_HALO = 12  # of a module with four 3×3 layers: 4 for the layers, 6 for the mask branch; even, as its pooling needs
SMALLEST = 32

Box = tuple[slice, slice]


@torch.no_grad()
def upscale(network: SMSR, pictures: Tensor, tile: int = 0, ensemble: bool = False) -> Tensor:
    """Magnify images; afterwards `network.kept` and `network.masks` are those of the whole image (unflipped).

    Args:
        network: in evaluation mode.
        pictures: images (N, 3, H, W) of 0 to 255, any size.
        tile: side of the tiles in input pixels, rounded up to an even number, at least 32; 0: the whole image at once.
        ensemble: the mean over the eight flips and transpositions of the image (EDSR, arXiv 1707.02921), eight
            times the work for about 0.1 dB.

    Returns:
        (N, 3, s·H, s·W), not clamped.

    Raises:
        UseError: a tile smaller than 32 pixels.
    """
    if tile and tile < SMALLEST:
        raise UseError(f"tiles of {tile} pixels: {SMALLEST} is the least (0: no tiles)")
    run = (lambda x: tiled(network, x, tile + tile % 2)) if tile else network
    return self_ensemble(run, pictures) if ensemble else run(pictures)


def self_ensemble(run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Mean of `run` over the eight flips and transpositions of (N, C, H, W), each undone; the unchanged comes last."""
    total = None
    for flips, turned in reversed([(f, t) for t in (False, True) for f in ((), (3,), (2,), (2, 3))]):
        view = images.flip(flips) if flips else images
        out = run(view.transpose(2, 3).contiguous() if turned else view.contiguous())
        out = out.transpose(2, 3) if turned else out
        out = out.flip(flips) if flips else out
        total = out if total is None else total + out
    return total / 8


@torch.no_grad()
def tiled(network: SMSR, images: Tensor, tile: int) -> Tensor:
    """Compute `network(images)` in tiles; sets `network.kept` and `network.masks`.

    Args:
        network: in evaluation mode.
        images: (N, 3, H, W) of 0 to 255.
        tile: side of a tile in pixels, even.

    Returns:
        (N, 3, s·H, s·W).
    """
    size, scale = images.shape[-2:], network.scale
    boxes = [
        (slice(top, min(top + tile, size[0])), slice(left, min(left + tile, size[1])))
        for top in range(0, size[0], tile)
        for left in range(0, size[1], tile)
    ]
    x = network.sub_mean(images)
    head = _in_tiles(network.head, x, boxes, 2)
    features, total, network.kept, network.masks = head, torch.zeros_like(head), [], []
    halo = _HALO + 2 * max(0, network.n_layers - 4)
    for number, module in enumerate(network.body):
        y, mask = torch.empty_like(head), None
        for box in boxes:
            outer, inner = _grown(box, size, halo)
            part, _, part_mask = module.fuse(features[..., *outer], network.tau)
            y[..., *box] = part[..., *inner]
            mask = part_mask.new_empty(len(x), 1, *size) if mask is None else mask
            mask[..., *box] = part_mask[..., *inner]
        features = module.attend(features, y, y.mean((2, 3), keepdim=True))
        for box in boxes:
            total[..., *box] = network.gather(number, features[..., *box], total[..., *box])
        network.kept.append(kept_fraction(mask, module.body.ch_mask))
        network.masks.append(mask)
    out = network.skip(x)
    for box in boxes:
        outer, inner = _grown(box, size, 2)
        # Neighbours have overwritten the skip connection only in the overlap, which is discarded.
        part = network.end(total[..., *outer], head[..., *outer], out[..., *_scaled(outer, scale)])
        out[..., *_scaled(box, scale)] = part[..., *_scaled(inner, scale)]
    return out


def _in_tiles(run: Callable[[Tensor], Tensor], x: Tensor, boxes: list[Box], halo: int) -> Tensor:
    """Apply `run`, which preserves the size and has a receptive field of `halo` pixels around, to all tiles."""
    output = None
    for box in boxes:
        outer, inner = _grown(box, x.shape[-2:], halo)
        part = run(x[..., *outer])
        if output is None:
            output = torch.empty(*part.shape[:2], *x.shape[-2:], dtype=part.dtype, device=part.device).contiguous(
                memory_format=torch.channels_last
            )
        output[..., *box] = part[..., *inner]
    return output


def _grown(box: Box, size: tuple[int, int], halo: int) -> tuple[Box, Box]:
    """A box enlarged by `halo` within the image, and the box's position in it."""
    outer = tuple(slice(max(0, side.start - halo), min(n, side.stop + halo)) for side, n in zip(box, size, strict=True))
    inner = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, outer, strict=True))
    return outer, inner


def _scaled(box: Box, scale: int) -> Box:
    return tuple(slice(side.start * scale, side.stop * scale) for side in box)
