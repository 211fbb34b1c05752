"""Disparity: how far each point of the left picture lies to the left in the right one, hence how near it is.

    sparsemask disparity LEFT RIGHT OUT.png --weights FILE        colour-mapped, near is red
    sparsemask disparity LEFT RIGHT OUT.pfm --weights FILE        the map itself, in pixels
    sparsemask disparity LEFT RIGHT OUT.png --png16 D.png --pfm D.pfm    also as KITTI's 16-bit PNG (256 times the
                                                                  pixels), and as PFM
    sparsemask disparity LEFT RIGHT OUT.png --focal 721.5 --baseline 0.54 --depth Z.png --cloud P.ply
                                                                  also depth, and coloured points, in metres
    sparsemask disparity LEFT RIGHT OUT.png --calib calib.txt --depth Z.npy    by KITTI's or Middlebury's calibration
    sparsemask disparity LEFT_FOLDER RIGHT_FOLDER --out-dir OUT --write colours depth cloud --calib FILE
    sparsemask disparity LEFT RIGHT OUT.png --show-masks DIR      also draw which voxels were computed
    sparsemask disparity LEFT RIGHT OUT.png --memory 2            in tiles that need no more than 2 GB

Pairs are rectified, of one size, grey or colour. Depth is focal length times baseline over disparity: PNG hold
millimetres (0: none), .npy metres (NaN: none). Points are metres in the left camera's frame: x to the right, y down, z
ahead. Pictures of two folders are pairs by their names, without "left" and "right"; a bad pair is named, the rest are
done, and the exit status is 1. Weights: --weights (a run's, its network.safetensors, or a GwcNet's), else smstereo*.pt
and the like in $SPARSEMASK_WEIGHTS or the cache; `sparsemask search --space smstereo` trains some.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from sparsemask.cli.computing import add_computing, place
from sparsemask.cli.inputs import each
from sparsemask.cli.stereo_pairs import ENDS, PairJob, camera_of, jobs_of
from sparsemask.command_lines import spoken
from sparsemask.errors import UseError, command
from sparsemask.options import Parser, factor, natural, positive
from sparsemask.tasks.stereo.calibration import Camera


def parser() -> Parser:
    """The command's flags."""
    result = Parser("disparity", prog="sparsemask disparity", description=__doc__)
    result.add_argument(
        "pictures", nargs="+", metavar="LEFT RIGHT OUT",
        help="the left and the right picture (PNG, JPEG, WebP, TIFF, BMP, ...), and the picture to write (.png, .jpg, "
        ".webp, .tif, .bmp) or the map, .pfm; with --out-dir two folders",
    )  # fmt: skip
    result.add_argument("--png16", metavar="FILE", default=None, help="write the map as 16-bit PNG too")
    result.add_argument("--pfm", metavar="FILE", default=None, help="write the map as PFM too")
    result.add_argument("--depth", metavar="FILE", default=None, help="write depth too: .png (16 bits, mm) or .npy (m)")
    result.add_argument("--cloud", metavar="FILE", default=None, help="write coloured points too: .ply")
    result.add_argument(
        "--out-dir", "--out_dir", default=None, help="folder to write into, by the left pictures' names"
    )
    result.add_argument("--write", nargs="+", choices=ENDS, default=None, help="what goes there (default: colours)")
    result.add_argument("--focal", type=factor, default=None, metavar="PIXELS", help="focal length, for depth")
    result.add_argument("--baseline", type=factor, default=None, metavar="METRES", help="distance of the cameras")
    result.add_argument(
        "--calib", metavar="FILE", default=None, help="a calibration file instead of both, or a folder with one a pair"
    )
    result.add_argument(
        "--max-depth", "--max_depth", type=factor, default=None, metavar="METRES",
        help="what is farther has no depth (default: any; of points that of one pixel of disparity)",
    )  # fmt: skip
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
    pairs = jobs_of(options)
    if options.out_dir is None:  # what is wrong with these is said before the network is read
        camera_of(pairs[0], options)
    network, source = find_network(options.weights, options.maxdisp)
    if "png16" in pairs[0].files and network.maxdisp > 256:
        raise UseError(
            f"{pairs[0].files['png16']}: 16-bit PNG hold disparities below 256, with --maxdisp {network.maxdisp}: --pfm"
        )
    compute = place(network, options, options.type)
    do = lambda job: match(job, network, source, compute, options)
    return each(pairs, do, lambda job: job.left, "pairs matched", options.out_dir)


def match(job: PairJob, network, source: str, compute, options) -> list[str]:
    """Match a pair and write its files; returns lines about it."""
    from sparsemask.finite import check_output
    from sparsemask.sparse import repeatable
    from sparsemask.tasks.stereo.batch import make_pair, pad16, picture_of, unpad
    from sparsemask.tasks.stereo.files import read_pictures
    from sparsemask.VOC12.images import picture_notes

    if job.right is None:
        raise UseError(f"{job.left}: there is no right picture of this name")
    camera = camera_of(job, options)
    left, right = read_pictures(job.left, job.right)
    pair = pad16(make_pair(left, right)).to(compute.device)
    tile = settle_tile(options, pair, network.maxdisp)
    began = time.perf_counter()
    with repeatable(), compute.context():
        output, masks, kept = run(network, pair, tile)
    check_output(output, network)
    disparity = unpad(output[0], *left.shape[:2]).float().cpu().numpy()
    spent = time.perf_counter() - began
    lost = write(job.files, disparity, left, camera, options.max_depth)
    tiling = "" if tile is None else f", tiles of {tile[1]}x{tile[0]} at most"
    said = [
        f"{job.left} {left.shape[1]}x{left.shape[0]} -> {', '.join(str(file) for file in job.files.values())}: "
        f"{disparity.min():.1f} to {disparity.max():.1f} px, {spent:.2f} s{tiling}; kept fraction {kept:.2f} ({source})"
    ]
    notes = [f"{name}: {text}" for name in (job.left, job.right) for text in picture_notes(name)]
    said += [f"note: {line}" for line in [*notes, *lost]]
    if options.show_masks:
        drawn = picture_of(pair.left[0]), [mask[0, 0].cpu().numpy() for mask in masks], output[0].float().cpu().numpy()
        said.append(f"masks: {show(*drawn, job.name, Path(options.show_masks))}")
    return said


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
            "no weights: give --weights FILE (a run's network.safetensors, or a public GwcNet checkpoint), put it as "
            f"smstereo.safetensors into $SPARSEMASK_WEIGHTS or {datasets.cache() / 'weights'}, or train some on "
            f"generated scenes: {spoken('search', '--space smstereo')}, then prune and retrain"
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


def write(
    files: Mapping[str, Path], disparity: np.ndarray, left: np.ndarray, camera: Camera | None, most: float | None
) -> list[str]:
    """Write what is asked for of a map (H, W) in pixels.

    Args:
        files: by kind.
        disparity: the map.
        left: the left picture uint8 (H, W, 3).
        camera: for what is in metres.
        most: metres, beyond which there is no depth; None: any, and of points those of a pixel of disparity or more.

    Returns:
        Notes on what a format could not hold.
    """
    from sparsemask.pictures.files import Picture, write_picture
    from sparsemask.pictures.stereo import colours
    from sparsemask.tasks.stereo.calibration import write_depth, write_points
    from sparsemask.tasks.stereo.files import write_disparity

    lost = []
    for kind, path in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        if kind == "colours":
            high = float(np.percentile(disparity, 99.8))  # a few wild pixels must not darken all others
            lost += write_picture(path, Picture(colours(disparity, high=max(high, 1.0)).astype(np.float32)))
        elif camera is None or kind in ("png16", "pfm"):
            write_disparity(path, disparity)
        elif kind == "cloud":
            points = camera.points(camera.depth(disparity, most or camera.farthest))
            if not write_points(path, points, left):
                lost.append(f"{path}: no point is nearer than {most or camera.farthest:.1f} m: it is empty")
        else:
            lost += write_depth(path, camera.depth(disparity, most))
    return lost


def show(image: np.ndarray, masks: list[np.ndarray], disparity: np.ndarray, name: str, folder: Path) -> Path:
    """Draw which voxels were computed, beside the disparity; returns the file."""
    from sparsemask.pictures.stereo import draw_voxels

    folder.mkdir(parents=True, exist_ok=True)
    title = f"Where each module computes: {name}"
    return draw_voxels(image, masks, folder / f"{name}_masks.png", title, disparity)
