"""Predict: a class for every pixel of pictures, by a network that was trained here or exported.

    sparsemask predict PICTURES                         by the newest retrain run; files, folders, "*.jpg"
    sparsemask predict PICTURES --run runs/NAME         by another run
    sparsemask predict PICTURES --weights net.onnx      by a file: .safetensors, .pt2, .onnx, a run's checkpoint
    sparsemask predict PICTURES --weights w.pth --mask_path M   by weights of any origin
    sparsemask predict PICTURES --weights shapes        by a name of `sparsemask models`
    sparsemask predict FOLDER --out-dir OUT --write labels overlay probabilities

Pictures may have any size. Into the folder OUT go, a picture each: NAME.png, class numbers with a palette (maps of yes
and no: grey); NAME_overlay.jpg, the colours over the picture; NAME_colours.png, the colours alone; NAME.npz, the
probabilities (float16, classes x height x width) and the classes' names. classes.json and palette.png say which number
and colour is which class. A picture that cannot be read is named, the others are done, and the exit status is 1.
"""

from __future__ import annotations

import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sparsemask.cli.inputs import each, expand, output_folder
from sparsemask.errors import UseError, command, say
from sparsemask.options import Parser, factor, positive

if TYPE_CHECKING:
    from sparsemask.prediction import Prediction, Predictor

WHAT = ("labels", "overlay", "colours", "probabilities")
_ENDS = {"labels": ".png", "overlay": "_overlay.jpg", "colours": "_colours.png", "probabilities": ".npz"}
_MOST_SHOWN = 4  # classes in a picture's line


def parser() -> Parser:
    """The command's flags."""
    result = Parser("predict", prog="sparsemask predict", description=__doc__)
    result.add_argument("pictures", metavar="PICTURE", nargs="+", help="pictures, folders of them, or patterns")
    result.add_argument("--run", default=None, help="the retrain or specialize run (default: the newest retrain run)")
    result.add_argument("--weights", default=None, metavar="FILE", help="a network's file instead of a run")
    result.add_argument("--exp_path", default="runs", help="folder that holds the runs (default: runs)")
    result.add_argument(
        "--out-dir", "--out_dir", metavar="OUT", default="predictions", help="folder to write to (default: predictions)"
    )
    result.add_argument(
        "--write", nargs="+", choices=WHAT, default=["labels", "overlay"], help="(default: labels overlay)"
    )
    result.add_argument("--recursive", action="store_true", help="pictures in the folders of folders too")
    result.add_argument(
        "--numbers", choices=("classes", "files"), default="classes",
        help="in label PNG: of the classes, 0, 1, ..., or as the training's label files had them, by --label_map",
    )  # fmt: skip
    result.add_argument("--class_names", default=None, metavar="FILE", help="text file, one class name a line")
    result.add_argument(
        "--longest", type=positive, default=None, metavar="PIXELS", help="compute larger pictures at this longer side"
    )
    result.add_argument("--flips", action="store_true", help="average over mirrored copies")
    result.add_argument("--scales", type=factor, nargs="+", default=[1.0], help="average over scales (default: 1)")
    result.add_argument("--mask_path", default=None, help="the connectivity mask of weights that do not say it")
    result.add_argument("--backbone_name", default="mobilenet_v2", help="their encoder (default: mobilenet_v2)")
    result.add_argument("--gpu", type=int, default=0, help="CUDA device; -1, or no CUDA: the CPU (default: 0)")
    return result


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    options = parser().parse_args(argv)
    if options.run and options.weights:
        raise UseError(f"--run {options.run} and --weights {options.weights}: give the one or the other")
    out = output_folder(options.out_dir)
    paths = list(map(Path, expand(options.pictures, recursive=options.recursive, without=out)))
    names = output_names(paths, out, options.write)

    from sparsemask import runs
    from sparsemask.api.prediction import open_predictor
    from sparsemask.VOC12.lists import read_list

    classes = read_list(options.class_names) if options.class_names else None
    source = options.weights or options.run or runs.newest(options.exp_path, "retrain").folder
    predictor = open_predictor(
        source, mask=options.mask_path, backbone=options.backbone_name, classes=classes, gpu=options.gpu
    )
    as_files = options.numbers == "files"
    views = {"longest": options.longest, "flips": options.flips, "scales": options.scales}
    jobs = list(zip(paths, names, strict=True))
    files: list[Path] = []

    def predict(job: tuple[Path, str]) -> list[str]:
        (path, name), start = job, time.perf_counter()
        prediction = predictor(path, **views)
        out.mkdir(parents=True, exist_ok=True)
        written = [write(prediction, out / f"{name}{_ENDS[what]}", what, as_files) for what in options.write]
        files.extend(written)
        spent = time.perf_counter() - start
        return [f"{path} {size_of(prediction)} -> {written[0]}: {summary(prediction)}, {spent:.2f} s"]

    where = None if len(jobs) == 1 else out
    status = each(jobs, predict, lambda job: str(job[0]), "pictures predicted", where)
    if files:
        write_classes(predictor, out)
        say(f"by {predictor.source}; {out}: {', '.join(options.write)}")
    return status


def output_names(paths: Sequence[Path], out: Path, write: Sequence[str]) -> list[str]:
    """A name for what is written of each picture.

    Raises:
        UseError: a file to be written is one of the pictures.
    """
    from sparsemask.files import distinct_names

    names = distinct_names(paths)
    pictures = {path.resolve() for path in paths}
    for name in names:
        for what in write:
            target = (out / f"{name}{_ENDS[what]}").resolve()
            if target in pictures:
                raise UseError(f"--out-dir {out}: {target.name} would overwrite that picture; take another folder")
    return names


def size_of(prediction: Prediction) -> str:
    """'640x480'."""
    height, width = prediction.image.shape[:2]
    return f"{width}x{height}"


def summary(prediction: Prediction) -> str:
    """The classes with the largest shares of the picture."""
    from sparsemask.pictures.overlay import percent

    if prediction.description.output == "probability":
        return f"{prediction.classes[-1]} {percent(float(prediction.labels.mean()))}"
    shares = list(prediction.shares.items())
    words = [f"{name} {percent(share)}" for name, share in shares[:_MOST_SHOWN]]
    return ", ".join([*words, *(["..."] if len(shares) > _MOST_SHOWN else [])])


def write(prediction: Prediction, path: Path, what: str, as_files: bool = False) -> Path:
    """Write one of :data:`WHAT` of a prediction, with the folders that its name has; returns the file.

    as_files: labels with the numbers of the training's label files.
    """
    import numpy as np
    from PIL import Image

    from sparsemask.files import write_bytes
    from sparsemask.pictures.files import encoded

    path.parent.mkdir(parents=True, exist_ok=True)
    if what == "labels":
        prediction.save_labels(path, as_files)
    elif what == "overlay":
        write_bytes(path, encoded(Image.fromarray(prediction.overlay), "JPEG", quality=92))
    elif what == "colours":
        write_bytes(path, encoded(Image.fromarray(prediction.colours), "PNG"))
    else:
        buffer = io.BytesIO()
        values = prediction.probabilities.astype(np.float16)
        np.savez_compressed(buffer, probabilities=values, classes=np.array(prediction.classes))
        write_bytes(path, buffer.getvalue())
    return path


def write_classes(predictor: Predictor, out: Path) -> None:
    """Write classes.json and palette.png, which say which number and colour is which class."""
    from sparsemask.files import write_json
    from sparsemask.pictures.palette import draw_palette

    description = predictor.description
    rows = zip(description.classes, description.palette.tolist(), description.numbers, strict=True)
    numbered = description.label_map is not None
    entries = {
        str(k): {"name": name, "colour": rgb, **({"number_in_files": number} if numbered else {})}
        for k, (name, rgb, number) in enumerate(rows)
    }
    write_json(out / "classes.json", entries)
    draw_palette(description.classes, description.palette, out / "palette.png")
