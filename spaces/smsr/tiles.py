"""Large pictures in tiles, and the self-ensemble.

A tile's output depends on its surroundings in two ways. Through convolutions and mask branches: a module sees 12 pixels
around a location, so tiles are cut with that overlap, module by module, and the overlap is thrown away. Through the
channel attention, which averages over the whole picture: a tile's own average would give each tile its own
contrast and show as seams. So the network is not run tile by tile but module by module: the features between two
modules are held whole, a module is computed tile by tile, its average is taken over all of them, and only then the
attention is applied. The result is that of the untiled network to rounding, in one pass, without the 34 pixels of
overlap that whole networks would need; what is held is three maps of features, and the working memory of the modules
(about three times that) shrinks to a tile's.
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
    """Magnify pictures (N, 3, H, W) of 0 to 255 to (N, 3, s·H, s·W), not clamped; the network in evaluation mode.

    Args:
        network: as loaded.
        pictures: any size.
        tile: side of the tiles in input pixels, rounded up to an even number; 0: the whole picture at once.
        ensemble: the mean over the eight flips and transpositions of the picture (EDSR, arXiv 1707.02921), eight
            times the work for about 0.1 dB.

    Afterwards `network.kept` and `network.masks` are those of the whole picture (with `ensemble`, unturned).
    Raises UseError for a tile smaller than 32 pixels.
    """
    if tile and tile < SMALLEST:
        raise UseError(f"tiles of {tile} pixels: {SMALLEST} is the least (0: no tiles)")
    run = (lambda x: tiled(network, x, tile + tile % 2)) if tile else network
    return self_ensemble(run, pictures) if ensemble else run(pictures)


def self_ensemble(run: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """Mean of `run` over the eight flips and transpositions of (N, C, H, W), turned back; the plain one comes last."""
    total = None
    for flips, turned in reversed([(f, t) for t in (False, True) for f in ((), (3,), (2,), (2, 3))]):
        one = pictures.flip(flips) if flips else pictures
        out = run(one.transpose(2, 3).contiguous() if turned else one.contiguous())
        out = out.transpose(2, 3) if turned else out
        out = out.flip(flips) if flips else out
        total = out if total is None else total + out
    return total / 8


@torch.no_grad()
def tiled(network: SMSR, pictures: Tensor, tile: int) -> Tensor:
    """What `network(pictures)` gives, computed in tiles of an even number of pixels."""
    size, scale = pictures.shape[-2:], network.scale
    boxes = [
        (slice(top, min(top + tile, size[0])), slice(left, min(left + tile, size[1])))
        for top in range(0, size[0], tile)
        for left in range(0, size[1], tile)
    ]
    x = network.sub_mean(pictures)
    head = _in_tiles(network.head, x, boxes, 2)
    features, total, network.kept, network.masks = head, torch.zeros_like(head), [], []
    halo = _HALO + 2 * max(0, network.n_layers - 4)
    for number, module in enumerate(network.body):
        y, mask = torch.empty_like(head), None
        for box in boxes:
            outer, inner = _grown(box, size, halo)
            part, _, one = module.fuse(features[..., *outer], network.tau)
            y[..., *box] = part[..., *inner]
            mask = one.new_empty(len(x), 1, *size) if mask is None else mask
            mask[..., *box] = one[..., *inner]
        features = module.attend(features, y, y.mean((2, 3), keepdim=True))
        for box in boxes:
            total[..., *box] = network.gather(number, features[..., *box], total[..., *box])
        network.kept.append(kept_fraction(mask, module.body.ch_mask))
        network.masks.append(mask)
    out = network.skip(x)
    for box in boxes:
        outer, inner = _grown(box, size, 2)
        # What the neighbours have overwritten of the skip connection lies in the part that is thrown away.
        part = network.end(total[..., *outer], head[..., *outer], out[..., *_scaled(outer, scale)])
        out[..., *_scaled(box, scale)] = part[..., *_scaled(inner, scale)]
    return out


def _in_tiles(run: Callable[[Tensor], Tensor], x: Tensor, boxes: list[Box], halo: int) -> Tensor:
    """`run`, which looks `halo` pixels around and keeps the size, over all tiles."""
    whole = None
    for box in boxes:
        outer, inner = _grown(box, x.shape[-2:], halo)
        part = run(x[..., *outer])
        if whole is None:
            whole = torch.empty(*part.shape[:2], *x.shape[-2:], dtype=part.dtype, device=part.device).contiguous(
                memory_format=torch.channels_last
            )
        whole[..., *box] = part[..., *inner]
    return whole


def _grown(box: Box, size: tuple[int, int], halo: int) -> tuple[Box, Box]:
    """A box with what surrounds it inside the picture, and where the box lies in that."""
    outer = tuple(slice(max(0, one.start - halo), min(n, one.stop + halo)) for one, n in zip(box, size, strict=True))
    inner = tuple(slice(a.start - b.start, a.stop - b.start) for a, b in zip(box, outer, strict=True))
    return outer, inner


def _scaled(box: Box, scale: int) -> Box:
    return tuple(slice(one.start * scale, one.stop * scale) for one in box)
