"""Upscale: a larger picture out of a picture, by a super-resolution network that computes only where it must.

    sparsemask upscale IN.png OUT.png                      by the scale of the weights that are found
    sparsemask upscale IN.png OUT.png --scale 3 --weights FILE
    sparsemask upscale IN.png OUT.png --show-masks DIR     also draw where each module computed
    sparsemask upscale IN.png OUT.png --ensemble           mean over eight flips: a little better, eight times as long
    sparsemask upscale IN.png OUT.png --tile 256           in tiles, for pictures that memory is too small for

Grey pictures stay grey (PNG and TIFF: 16 bits too), transparency is enlarged by bicubic, palettes become colours.
Weights: --weights (a public checkpoint, a run's, or its network.safetensors), else smsr_x2*.pt and the like in
$SPARSEMASK_WEIGHTS or the cache.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsemask.cli.computing import add_computing, place
from sparsemask.errors import UseError, command
from sparsemask.options import Parser, natural, positive

LARGE = 300_000  # input pixels above which tiles are the default: one piece takes 3.6 kB a pixel, tiles 1.3 kB
TILE = 256


def parser() -> Parser:
    """The command's flags."""
    result = Parser("upscale", prog="sparsemask upscale", description=__doc__)
    result.add_argument("picture", metavar="IN", help="the picture: PNG, JPEG, WebP, TIFF, BMP, ...")
    result.add_argument("out", metavar="OUT", help="the picture to write: .png, .jpg, .webp, .tif or .bmp")
    result.add_argument("--scale", type=positive, default=None, help="2, 3 or 4 (default: that of the weights)")
    result.add_argument("--weights", default=None, help="the network's weights (default: looked for, see above)")
    result.add_argument(
        "--show-masks", "--show_masks", metavar="DIR", default=None, help="draw the masks into a folder"
    )
    result.add_argument("--ensemble", action="store_true", help="mean over the eight flips and transpositions")
    result.add_argument(
        "--tile", type=natural, default=None, help=f"input pixels, 0: none (default: {TILE} for large pictures, else 0)"
    )
    add_computing(result)
    return result


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = parser().parse_args(argv)
    from sparsemask.pictures.files import check_output, read_picture, write_picture

    out = check_output(options.out)
    image = read_picture(options.picture)
    network, source = find_network(options.weights, options.scale)

    import torch

    from sparsemask.finite import check_output
    from sparsemask.sparse import repeatable

    compute = place(network, options)
    height, width = image.colour.shape[:2]
    tile = options.tile if options.tile is not None else TILE if height * width > LARGE else 0
    began = time.perf_counter()
    pixels = torch.from_numpy(image.colour).permute(2, 0, 1)[None].to(compute.device)
    with repeatable():
        output = check_output(run(network, pixels, tile, options.ensemble), network)
    spent = time.perf_counter() - began
    larger = image.enlarged(output[0].permute(1, 2, 0).cpu().numpy())
    lost = write_picture(out, larger)
    shares = [float(mask.float().mean()) for mask in network.kept]
    print(
        f"{options.picture} {image.size} -> {out} {larger.size}, {spent:.2f} s; computed "
        f"{100 * np.mean(shares):.0f} % of channels x places ({source})"
    )
    for line in [*(f"{options.picture}: {text}" for text in image.remarks), *lost]:
        print(f"note: {line}")
    if options.show_masks:
        for path in show(image, network, Path(options.picture).stem, Path(options.show_masks)):
            print(f"masks: {path}")
    return 0


def find_network(weights: str | None, scale: int | None):
    """(the network, the file it comes from): of `weights`, or of what lies in $SPARSEMASK_WEIGHTS or the cache.

    Raises:
        UseError: there is none, or one of another scale.
    """
    from sparsemask import datasets
    from sparsemask.spaces.sparse_conv import load_smsr

    path = weights
    if path is None:
        for name in [f"smsr_x{scale}"] if scale else ["smsr_x2", "smsr_x3", "smsr_x4"]:
            path = path or datasets.backbone_weights(name, None)
    if path is None:
        raise UseError(
            f"no weights for x{scale or 2}: give --weights FILE, or put smsr_x{scale or 2}.pt into "
            f"$SPARSEMASK_WEIGHTS or {datasets.cache() / 'weights'}"
        )
    network = load_smsr(path)
    if scale not in (None, network.scale):
        raise UseError(f"--scale {scale}: the weights {path} magnify by {network.scale}")
    return network, path


def run(network, pixels, tile: int, ensemble: bool):
    """The enlarged image (1, 3, s·H, s·W); UseError where memory is too small for it in one piece."""
    from sparsemask.spaces.sparse_conv import upscale

    try:
        return upscale(network, pixels, tile, ensemble)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        size = f"{pixels.shape[-1]}x{pixels.shape[-2]}"
        raise UseError(
            f"not enough memory for {size} pixels: try --tile {max(64, tile // 2) if tile else 256}"
        ) from None


def show(image, network, name: str, folder: Path) -> list[Path]:
    """Draw the masks: all of them with their keep ratios on one page, and each over the image, pixel by pixel."""
    from PIL import Image

    from sparsemask.files import write_bytes
    from sparsemask.pictures.files import encoded
    from sparsemask.pictures.overlay import draw_masks, overlay

    pixels = np.clip(np.rint(image.colour), 0, 255).astype(np.uint8)
    masks = [mask[0, 0].cpu().numpy() for mask in network.masks]
    folder.mkdir(parents=True, exist_ok=True)
    paths = [draw_masks(pixels, masks, folder / f"{name}_masks.png", f"Where each module computes: {name}")]
    for number, mask in enumerate(masks, 1):
        path = folder / f"{name}_module{number}.png"
        write_bytes(path, encoded(Image.fromarray(overlay(pixels, mask)), "PNG"))
        paths.append(path)
    return paths
