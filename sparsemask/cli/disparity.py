"""Disparity: how far each point of the left picture lies to the left in the right one, hence how near it is.

    sparsemask disparity LEFT RIGHT OUT.png --weights FILE        colour-mapped, near is red
    sparsemask disparity LEFT RIGHT OUT.pfm --weights FILE        the map itself, in pixels
    sparsemask disparity LEFT RIGHT OUT.png --png16 D.png --pfm D.pfm    also as KITTI's 16-bit PNG (256 times the
                                                                  pixels), and as PFM
    sparsemask disparity LEFT RIGHT OUT.png --show-masks DIR      also draw which voxels were computed
    sparsemask disparity LEFT RIGHT OUT.png --memory 2            in tiles that need no more than 2 GB

Pairs are rectified, of one size, grey or colour. Weights: --weights (a run's, its network.safetensors, or a GwcNet's),
else smstereo*.pt and the like in $SPARSEMASK_WEIGHTS or the cache.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sparsemask.cli.computing import add_computing, place
from sparsemask.errors import UseError, command
from sparsemask.options import Parser, factor, natural, positive


def parser() -> Parser:
    """The command's flags."""
    result = Parser("disparity", prog="sparsemask disparity", description=__doc__)
    result.add_argument("left", metavar="LEFT", help="the left picture: PNG, JPEG, WebP, TIFF, BMP, ...")
    result.add_argument("right", metavar="RIGHT", help="the right picture")
    result.add_argument(
        "out", metavar="OUT", help="the picture to write (.png, .jpg, .webp, .tif, .bmp), or the map, .pfm"
    )
    result.add_argument("--png16", metavar="FILE", default=None, help="write the map as 16-bit PNG too")
    result.add_argument("--pfm", metavar="FILE", default=None, help="write the map as PFM too")
    result.add_argument("--weights", default=None, help="the network's weights (default: looked for, see above)")
    result.add_argument(
        "--maxdisp", type=positive, default=None, help="a multiple of 16: disparities below it (default: as trained)"
    )
    result.add_argument(
        "--show-masks", "--show_masks", metavar="DIR", default=None, help="draw the masks into a folder"
    )
    size = result.add_mutually_exclusive_group()
    size.add_argument("--memory", type=factor, default=None, metavar="GB", help="tiles that need about so much at most")
    size.add_argument("--tile", type=natural, default=0, help="side of tiles in pixels, 0: none (default: 0)")
    add_computing(result)
    return result


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = parser().parse_args(argv)
    files = check_outputs(options)

    from sparsemask.tasks.stereo.batch import make_pair, pad16, picture_of, unpad
    from sparsemask.tasks.stereo.files import read_pictures
    from sparsemask.VOC12.images import picture_notes

    left, right = read_pictures(options.left, options.right)
    network, source = find_network(options.weights, options.maxdisp)

    if "png16" in files and network.maxdisp > 256:
        raise UseError(
            f"{files['png16']}: 16-bit PNG hold disparities below 256, with --maxdisp {network.maxdisp}: --pfm"
        )

    from sparsemask.finite import check_output
    from sparsemask.sparse import repeatable

    compute = place(network, options)
    pair = pad16(make_pair(left, right)).to(compute.device)
    tile = settle_tile(options, pair, network.maxdisp)
    began = time.perf_counter()
    with repeatable():
        output, masks, kept = run(network, pair, tile)
    check_output(output, network)
    disparity = unpad(output[0], *left.shape[:2]).cpu().numpy()
    spent = time.perf_counter() - began
    lost = write(files, disparity)
    tiling = "" if tile is None else f", tiles of {tile[1]}x{tile[0]} at most"
    print(
        f"{options.left} {left.shape[1]}x{left.shape[0]} -> {', '.join(str(file) for file in files.values())}: "
        f"{disparity.min():.1f} to {disparity.max():.1f} px, {spent:.2f} s{tiling}; kept fraction {kept:.2f} ({source})"
    )
    notes = [f"{name}: {text}" for name in (options.left, options.right) for text in picture_notes(name)]
    for line in [*notes, *lost]:
        print(f"note: {line}")
    if options.show_masks:
        drawn = picture_of(pair.left[0]), [mask[0, 0].cpu().numpy() for mask in masks], output[0].cpu().numpy()
        print(f"masks: {show(*drawn, Path(options.left).stem, Path(options.show_masks))}")
    return 0


def check_outputs(options) -> dict[str, Path]:
    """The files to write by kind; UseError, before any work, where one could not be written."""
    from sparsemask.pictures.files import check_output

    files = {}
    for kind, name, suffix in (("map", options.pfm, ".pfm"), ("png16", options.png16, ".png")):
        if name is not None:
            if Path(name).suffix.lower() != suffix:
                raise UseError(f"{name}: expected a name that ends in {suffix}")
            files[kind] = Path(name)
    out = Path(options.out)
    if out.suffix.lower() == ".pfm":
        files.setdefault("map", out)
        if files["map"] != out:
            raise UseError(f"{out} and --pfm {options.pfm}: the same twice")
    else:
        files["colours"] = check_output(out)
    for path in files.values():
        if not path.parent.is_dir():
            raise UseError(f"{path}: no such folder: {path.parent}")
        if path.is_dir():
            raise UseError(f"{path}: is a folder, expected the name of a file to write")
    if len(set(files.values())) < len(files):
        raise UseError(f"{options.png16}: named twice, for colours and for the 16-bit map")
    if options.show_masks is not None and Path(options.show_masks).is_file():
        raise UseError(f"--show-masks {options.show_masks}: is a file, expected a folder")
    return files


def find_network(weights: str | None, maxdisp: int | None):
    """(the network, the file it comes from): of `weights`, or of what lies in $SPARSEMASK_WEIGHTS or the cache."""
    from sparsemask import datasets
    from sparsemask.spaces.smstereo.checkpoints import load_smstereo
    from sparsemask.tasks.stereo.batch import MULTIPLE
    from sparsemask.weights import file_space

    if maxdisp is not None and maxdisp % MULTIPLE:
        near = -(-maxdisp // MULTIPLE) * MULTIPLE
        raise UseError(f"--maxdisp {maxdisp}: must be a multiple of {MULTIPLE}: try {near}")
    path = weights or datasets.backbone_weights("smstereo", None)
    if path is None:
        raise UseError(
            "no weights: give --weights FILE, or put smstereo.safetensors into $SPARSEMASK_WEIGHTS or "
            f"{datasets.cache() / 'weights'}"
        )
    space = file_space(path) or "smstereo"
    if space != "smstereo":
        raise UseError(f"{path}: weights of space '{space}', not of 'smstereo'")
    network = load_smstereo(path)
    network.maxdisp = maxdisp or network.maxdisp  # no weight depends on it
    return network, path


def settle_tile(options, pair, maxdisp: int) -> tuple[int, int] | None:
    """(height, width) of the tiles, None for one piece."""
    from sparsemask.tasks.stereo.tiles import SMALLEST, fitting_tile

    height, width = pair.shape[-2:]
    if options.memory is not None:
        tile = fitting_tile(height, width, maxdisp, options.memory * 1e9)
    elif options.tile:
        if options.tile < SMALLEST:
            raise UseError(f"--tile {options.tile}: at least {SMALLEST} pixels, since more around them is computed too")
        tile = options.tile, options.tile
    else:
        return None
    return None if tile[0] >= height and tile[1] >= width else tile


def run(network, pair, tile: tuple[int, int] | None):
    """(disparities (1, H, W), voxel masks, mean kept fraction); UseError where memory is too small for it."""
    import torch

    from sparsemask.spaces.sparse_conv.masking import mean_kept
    from sparsemask.tasks.stereo.tiles import run_tiles

    kept = []

    def call(part):
        disparities = network(part)
        kept.append((float(mean_kept(network)), part.left.numel()))
        return disparities

    try:
        with torch.no_grad():
            if tile is None:
                disparities, masks = call(pair), network.masks
            else:
                disparities, masks = run_tiles(call, pair, network.maxdisp, tile, lambda: network.masks)
    except (RuntimeError, MemoryError) as error:
        if not isinstance(error, MemoryError) and "memory" not in str(error):
            raise
        size = f"{pair.shape[-1]}x{pair.shape[-2]}"
        raise UseError(f"not enough memory for {size} pixels: try --memory with what there is") from None
    shares, pixels = zip(*kept, strict=True)
    return disparities.float(), masks, float(np.average(shares, weights=pixels))


def write(files: dict[str, Path], disparity: np.ndarray) -> list[str]:
    """Write a map (H, W) in pixels; returns notes on what a format could not hold."""
    from sparsemask.pictures.files import Picture, write_picture
    from sparsemask.pictures.stereo import colours
    from sparsemask.tasks.stereo.files import write_disparity

    lost = []
    for kind, path in files.items():
        if kind == "colours":
            high = float(np.percentile(disparity, 99.8))  # a few wild pixels must not darken all others
            lost += write_picture(path, Picture(colours(disparity, high=max(high, 1.0)).astype(np.float32)))
        else:
            write_disparity(path, disparity)
    return lost


def show(image: np.ndarray, masks: list[np.ndarray], disparity: np.ndarray, name: str, folder: Path) -> Path:
    """Draw which voxels were computed, beside the disparity; returns the file."""
    from sparsemask.pictures.stereo import draw_voxels

    folder.mkdir(parents=True, exist_ok=True)
    title = f"Where each module computes: {name}"
    return draw_voxels(image, masks, folder / f"{name}_masks.png", title, disparity)
