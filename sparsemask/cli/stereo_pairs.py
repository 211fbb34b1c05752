"""Pairs that sparsemask disparity works on, and the files that are made of each."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass, field
from pathlib import Path

from sparsemask.cli.inputs import expand, output_folder
from sparsemask.errors import UseError
from sparsemask.tasks.stereo.calibration import Camera, check_depth_name, checked, read_calibration

# What is written of a pair, and how its name ends in a folder.
ENDS = {
    "colours": ".png", "png16": "_disparity.png", "pfm": ".pfm", "depth": "_depth.png", "depth-npy": "_depth.npy",
    "cloud": ".ply",
}  # fmt: skip
IN_METRES = ("depth", "depth-npy", "cloud")


@dataclass(frozen=True)
class PairJob:
    """A pair to match, and the files to write.

    Attributes:
        left: the left picture.
        right: the right one; None: the folder has none of this name.
        files: by kind, of :data:`ENDS`.
        name: of what is drawn.
    """

    left: str
    right: str | None
    files: dict[str, Path] = field(default_factory=dict)
    name: str = ""


def jobs_of(options: argparse.Namespace) -> list[PairJob]:
    """The pairs of a command line; UseError, before any work, for what cannot be written."""
    words = options.pictures
    if options.show_masks is not None and Path(options.show_masks).is_file():
        raise UseError(f"--show-masks {options.show_masks}: is a file, expected a folder")
    if options.out_dir is None:
        if len(words) != 3:
            raise UseError("expected LEFT RIGHT OUT, or two folders LEFT RIGHT and --out-dir FOLDER")
        if Path(words[0]).is_dir() or Path(words[1]).is_dir():
            raise UseError(f"{words[0]} and {words[1]}: folders of pairs need --out-dir FOLDER instead of {words[2]}")
        if options.write:
            raise UseError("--write is for --out-dir; of one pair the files are named: --pfm FILE, --depth FILE, ...")
        made = [PairJob(words[0], words[1], _named_files(options), Path(words[0]).stem)]
    else:
        made = _in_folders(options)
    metric = any(kind in IN_METRES for kind in made[0].files)
    cameras = [options.focal, options.baseline, options.calib]
    if metric and not (options.calib or (options.focal and options.baseline)):
        raise UseError("depth needs --focal PIXELS and --baseline METRES, or --calib FILE")
    if options.calib and (options.focal or options.baseline):
        raise UseError(f"--calib {options.calib} says focal length and baseline: leave --focal and --baseline out")
    if any(cameras) and not metric:
        raise UseError("--focal, --baseline and --calib are for depth: add --depth FILE or --cloud FILE (--write)")
    return made


def _in_folders(options: argparse.Namespace) -> list[PairJob]:
    """The pairs of two folders."""
    given = {"--png16": options.png16, "--pfm": options.pfm, "--depth": options.depth, "--cloud": options.cloud}
    for flag, value in given.items():
        if value is not None:
            raise UseError(f"{flag} {value}: is for one pair; of folders --write says what is written")
    if len(options.pictures) != 2:
        raise UseError("--out-dir needs two folders (or patterns): LEFT RIGHT")
    folder = output_folder(options.out_dir)
    lefts, rights = (expand([word], without=folder) for word in options.pictures)
    by_name = {_name_of(path, "right"): path for path in rights}
    if options.pictures[0] == options.pictures[1]:  # both sides in one folder
        lefts = [path for path in lefts if _name_of(path, "left") != Path(path).stem]
        if not lefts:
            raise UseError(f"{options.pictures[0]}: no pictures with 'left' in their names")
    names = [_name_of(path, "left") for path in lefts]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UseError(f"{options.pictures[0]}: two pictures of the name '{twice}'")
    kinds = list(dict.fromkeys(options.write or ["colours"]))
    made = []
    for left, name in zip(lefts, names, strict=True):
        files = {kind: folder / f"{name}{ENDS[kind]}" for kind in kinds}
        if any(path.resolve() in map(Path.resolve, (Path(left), *map(Path, rights))) for path in files.values()):
            raise UseError(f"{left}: would be replaced: give another --out-dir")
        made.append(PairJob(left, by_name.get(name), files, name))
    if not any(job.right for job in made):
        raise UseError(
            f"{options.pictures[1]}: no picture here has the name of one in {options.pictures[0]}, as {names[0]}"
        )
    return made


def _name_of(path: str, side: str) -> str:
    """A picture's name without the side: left_0001, 0001_left and 0001 are of one pair."""
    stem = Path(path).stem
    return re.sub(rf"(^{side}[_.-]?)|([_.-]?{side}$)", "", stem, flags=re.IGNORECASE) or stem


def _named_files(options: argparse.Namespace) -> dict[str, Path]:
    """The files of one pair by kind."""
    from sparsemask.pictures.files import check_output

    files = {}
    for kind, name, suffix in (
        ("pfm", options.pfm, ".pfm"), ("png16", options.png16, ".png"), ("cloud", options.cloud, ".ply"),
    ):  # fmt: skip
        if name is not None:
            if Path(name).suffix.lower() != suffix:
                raise UseError(f"{name}: expected a name that ends in {suffix}")
            files[kind] = Path(name)
    if options.depth is not None:
        files["depth"] = check_depth_name(Path(options.depth))
    out = Path(options.pictures[2])
    if out.suffix.lower() == ".pfm":
        files.setdefault("pfm", out)
        if files["pfm"] != out:
            raise UseError(f"{out} and --pfm {options.pfm}: the same twice")
    else:
        files["colours"] = check_output(out)
    for path in files.values():
        if not path.parent.is_dir():
            raise UseError(f"{path}: no such folder: {path.parent}")
        if path.is_dir():
            raise UseError(f"{path}: is a folder, expected the name of a file to write")
    names = list(files.values())
    if twice := next((path for path in names if names.count(path) > 1), None):
        raise UseError(f"{twice}: named twice, for {' and '.join(k for k, path in files.items() if path == twice)}")
    return files


def camera_of(job: PairJob, options: argparse.Namespace) -> Camera | None:
    """The cameras of a pair; None where nothing is asked for in metres.

    Of a folder that --calib names the pair's is the file of its name, or calib.txt.
    """
    if not any(kind in IN_METRES for kind in job.files):
        return None
    if not options.calib:
        return checked(options.focal, options.baseline, "--focal, --baseline")
    path = Path(options.calib)
    if path.is_dir():
        names = (f"{job.name}.txt", f"{job.name.rpartition('_')[0]}.txt", "calib.txt")
        found = next((path / name for name in names if (path / name).is_file()), None)
        if found is None:
            raise UseError(f"--calib {path}: no {names[0]} in this folder, and no calib.txt")
        path = found
    return read_calibration(path, job.left)
