"""Upscale: larger pictures out of pictures, by a super-resolution network.

    sparsemask upscale IN.png OUT.png                      by the network that is found, else by one that ships
    sparsemask upscale IN.png OUT.png --scale 3 --weights FILE
    sparsemask upscale photos 'more/*.jpg' --out-dir large --format webp     folders (of video frames, too), patterns
    sparsemask upscale IN.png OUT.png --memory 1G          in tiles, for pictures that memory is too small for
    sparsemask upscale IN.png OUT.png --show-masks DIR     also draw where each module of an SMSR computed
    sparsemask upscale IN.png OUT.png --ensemble           mean over eight flips: a little better, eight times as long
    cat IN.png | sparsemask upscale - - > OUT.png

Grey pictures stay grey (PNG and TIFF: 16 bits too), transparency is enlarged by bicubic, palettes become colours.
Of many pictures a bad one is named and the rest are done; the exit status is 1 then.
Weights: --weights (a public checkpoint of SRVGGNetCompact, RLFN, SPAN, PLKSR, EDSR or SMSR, a run's
network.safetensors, or a name of `sparsemask models`), else smsr_x2*.pt and the like in $SPARSEMASK_WEIGHTS or the
cache, else what ships.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from sparsemask.cli.computing import add_computing, place
from sparsemask.errors import UseError, command
from sparsemask.options import Parser, amount, natural, positive

FORMATS = ("png", "jpg", "webp", "tif", "bmp")


def parser() -> Parser:
    """The command's flags."""
    result = Parser("upscale", prog="sparsemask upscale", description=__doc__)
    result.add_argument(
        "pictures", nargs="+", metavar="IN",
        help="pictures (PNG, JPEG, WebP, TIFF, BMP, ...), folders or patterns, - for standard input; without --out-dir "
        "one picture and OUT, the file to write",
    )  # fmt: skip
    result.add_argument("--out-dir", "--out_dir", default=None, help="folder to write into, by the pictures' names")
    result.add_argument("--recursive", action="store_true", help="pictures in the folders of folders too")
    result.add_argument("--format", choices=FORMATS, default=None, help="of what is written (default: as the picture)")
    result.add_argument("--scale", type=positive, default=None, help="2, 3 or 4 (default: that of the weights)")
    result.add_argument("--weights", default=None, help="the network's weights (default: looked for, see above)")
    result.add_argument(
        "--show-masks", "--show_masks", metavar="DIR", default=None, help="draw the masks into a folder (SMSR)"
    )
    result.add_argument("--ensemble", action="store_true", help="mean over the eight flips and transpositions")
    result.add_argument(
        "--memory", type=amount, default=None, metavar="SIZE", help="largest memory of the process, as 800M or 2G; "
        "tiles are as large as it has room for (default: 1G where that suffices; SMSR: tiles of 256 for large pictures)"
    )  # fmt: skip
    result.add_argument("--tile", type=natural, default=None, help="side of the tiles in pixels, 0: none")
    add_computing(result)
    return result


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = parser().parse_args(argv)
    from sparsemask.cli import inputs
    from sparsemask.cli import picture_files as files

    work = _jobs(options, files)
    from sparsemask.cli.enlarging import find_enlarger

    enlarger = find_enlarger(options.weights, options.scale)
    if options.show_masks and not enlarger.masked:
        raise UseError(f"--show-masks: {enlarger.title} computes everything, it has no masks")
    compute = place(enlarger.network, options, options.type)
    enlarge = lambda job: _enlarge(job, enlarger, compute, options, files)
    lines = sys.stderr if work[0].out == inputs.STREAM else sys.stdout
    return inputs.each(work, enlarge, lambda job: job.source, "pictures enlarged", options.out_dir, lines)


def _jobs(options, files) -> list:
    """The pictures to read and the files to write."""
    from sparsemask.cli.inputs import STREAM, expand, output_folder
    from sparsemask.pictures.files import check_output

    if options.out_dir is None:
        if len(options.pictures) < 2:
            raise UseError("where to? give OUT behind IN, or --out-dir FOLDER")
        if len(options.pictures) > 2:
            raise UseError(f"{len(options.pictures) - 1} pictures need --out-dir FOLDER to be written into")
        source, out = options.pictures
        if out != STREAM:
            check_output(out)
            if options.format:
                raise UseError(f"--format is for --out-dir: the name {out} says the format")
        return [files.Job(source, out)]
    folder = output_folder(options.out_dir)
    sources = expand(options.pictures, recursive=options.recursive, without=folder, stream=True)
    return files.jobs(sources, folder, options.format)


def _enlarge(job, enlarger, compute, options, files) -> list[str]:
    """Enlarge one picture; returns lines about it."""
    from sparsemask.cli.inputs import STREAM

    image = files.read(job.source)
    began = time.perf_counter()
    larger = enlarger.enlarge(image, compute, options.tile, options.memory, options.ensemble)
    spent = time.perf_counter() - began
    lost = files.write(job.out, larger, options.format)
    name = files.STDIN_NAME if job.source == STREAM else job.source
    said = [f"{name} {image.size} -> {job.out} {larger.size}, {spent:.2f} s; {enlarger.words()}"]
    said += [f"note: {line}" for line in [*(f"{name}: {text}" for text in image.remarks), *lost]]
    if options.show_masks:
        paths = enlarger.draw_masks(image, Path(job.out).stem if job.source == STREAM else Path(name).stem,
                                    Path(options.show_masks))  # fmt: skip
        said += [f"masks: {path}" for path in paths]
    return said
