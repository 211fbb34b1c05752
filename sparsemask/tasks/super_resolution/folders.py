"""Layouts of image folders for super-resolution, and pairs of high- and low-resolution images.

    DIV2K        DIR/DIV2K/HR/0001.png, DIR/DIV2K/LR_bicubic/X2/0001.png (or 0001x2.png);
                 or as it is published: DIR/DIV2K/DIV2K_{train,valid}_HR, DIV2K_{train,valid}_LR_bicubic/X2
    test sets    DIR/benchmark/Set5/HR/baby.png, DIR/benchmark/Set5/LR_bicubic/X2/baby.png (or babyx2.png)
    images       any folder of images; the low-resolution ones are made by MATLAB's bicubic

A name stands for a folder, or for one of that name (large or small letters) below --dir_data or $SPARSEMASK_DATA, in
benchmark/ or beside it. A folder without images for a scale gets them made likewise.
"""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from sparsemask.errors import UseError
from sparsemask.VOC12.images import SUFFIXES, is_picture

if TYPE_CHECKING:
    from sparsemask.tasks.super_resolution.options import SuperResolutionData

DIV2K = "DIV2K"
_FORMS = (("HR", "LR_bicubic"), ("DIV2K_train_HR", "DIV2K_train_LR_bicubic"))
_VALID = ("DIV2K_valid_HR", "DIV2K_valid_LR_bicubic")
# Photographs that scikit-image carries in its wheel; what else it knows it would download.
_SAMPLE = {
    "training": (
        "astronaut.png", "brick.png", "coins.png", "grass.png", "gravel.png", "ihc.png", "motorcycle_left.png",
        "motorcycle_right.png", "rocket.jpg",
    ),
    "eval": ("camera.png", "chelsea.png", "coffee.png"),
}  # fmt: skip


class Pair(NamedTuple):
    """A high-resolution image and its low-resolution one, None where that is to be made."""

    hr: Path
    lr: Path | None


class Source(NamedTuple):
    """Images to work on. benchmark: whether they are scored on luma, as the published test sets are."""

    title: str
    pairs: list[Pair]
    benchmark: bool = True


def find_source(data: SuperResolutionData, split: str) -> Source:
    """The "training" or the "eval" images that flags name.

    Without --data_test every tenth image of --hr_path is for validation, and of DIV2K the second --data_range.
    """
    if split == "eval" and data.data_test:
        if data.data_test.lower() == DIV2K.lower():
            return div2k(data.dir_data, data.scale, data.data_range, split)
        folder = find_folder(data.data_test, data.dir_data, "--data_test")
        return Source(folder.name, read_folder(folder, data.scale))
    if data.sample:
        return Source("sample", sample_pairs(split))
    if data.hr_path:
        folder = find_folder(data.hr_path, data.dir_data, "--hr_path")
        pairs = read_folder(folder, data.scale)
        validation = set() if data.data_test else set(pairs[9::10] or pairs[-1:])
        kept = [pair for pair in pairs if (pair in validation) == (split == "eval")]
        if not kept:
            raise UseError(f"{folder}: its one picture is needed for validation: add pictures, or give --data_test")
        return Source(folder.name, kept)
    if data.dir_data:
        return div2k(data.dir_data, data.scale, data.data_range, split)
    flags = "--hr_path or --dir_data FOLDER" if split == "training" else "--data_test NAME or FOLDER"
    raise UseError(f"no {split} pictures: give {flags}, or --sample")


def find_folder(name: str, dir_data: str | None, flag: str) -> Path:
    """The folder that `name` stands for, see the module's docstring; UseError naming the flag where there is none."""
    if Path(name).is_dir():
        return Path(name)
    bases = [Path(base) for base in (dir_data, os.environ.get("SPARSEMASK_DATA")) if base]
    if Path(name).name == name:
        for base_folder in [
            base_folder for base in bases for base_folder in (base / "benchmark", base) if base_folder.is_dir()
        ]:
            matches = sorted(p for p in base_folder.iterdir() if p.name.lower() == name.lower() and p.is_dir())
            if matches:
                return matches[0]
    hint = "names are looked for below --dir_data and $SPARSEMASK_DATA"
    if bases:
        hint = f"nor one of that name below {' or '.join(map(str, bases))}"
    raise UseError(f"{flag} {name}: no such folder ({hint})")


def div2k(dir_data: str | None, scale: int, data_range: str, split: str) -> Source:
    """The part of DIV2K for training or validation.

    Args:
        dir_data: folder that holds DIV2K; None: $SPARSEMASK_DATA.
        scale: 2, 3 or 4.
        data_range: "1-800/801-810": training and validation images, counted from 1, ends included.
        split: "training" or "eval".

    Raises:
        UseError: no such folder, or fewer images than the range names.
    """
    base = dir_data or os.environ.get("SPARSEMASK_DATA")
    if not base:
        raise UseError("DIV2K needs --dir_data, the folder that DIV2K lies in")
    root = find_folder(DIV2K, str(base), "--dir_data")
    form = next((f for f in _FORMS if (root / f[0]).is_dir()), None)
    if form is None:
        raise UseError(f"{root}: no pictures of DIV2K: expected {' or '.join(f[0] for f in _FORMS)} in this folder")
    pairs = pair_up(root / form[0], root / form[1] / f"X{scale}", scale)
    if form != _FORMS[0] and (root / _VALID[0]).is_dir():
        pairs += pair_up(root / _VALID[0], root / _VALID[1] / f"X{scale}", scale)
    first, last = parse_range(data_range)[split == "eval"]
    if last > len(pairs):
        raise UseError(f"--data_range {data_range}: picture {last}, but {root / form[0]} has {len(pairs)}")
    return Source(DIV2K, pairs[first - 1 : last], split == "training")


def parse_range(text: str) -> tuple[tuple[int, int], tuple[int, int]]:
    """((first, last) of training, of validation) of a --data_range."""
    match = re.fullmatch(r"(\d+)-(\d+)/(\d+)-(\d+)", str(text).strip())
    bounds = tuple(map(int, match.groups())) if match else ()
    if not match or not 1 <= bounds[0] <= bounds[1] or not 1 <= bounds[2] <= bounds[3]:
        raise UseError(f"--data_range {text}: expected training and validation like 1-800/801-810, counted from 1")
    return bounds[:2], bounds[2:]


def read_folder(folder: Path, scale: int) -> list[Pair]:
    """The pairs of a folder: of its HR/ and LR_bicubic/X{scale}/, or of all its images."""
    if (folder / "HR").is_dir():
        return pair_up(folder / "HR", folder / "LR_bicubic" / f"X{scale}", scale)
    return [Pair(path, None) for path in pictures(folder)]


def pair_up(hr: Path, lr: Path, scale: int) -> list[Pair]:
    """Pair high-resolution images with low-resolution ones of the same name, or the name and "x{scale}".

    Args:
        hr: folder of the high-resolution images.
        lr: folder of the low-resolution ones; where it is absent, pairs have none.
        scale: high over low resolution.

    Raises:
        UseError: no images, or some of the low-resolution ones are absent.
    """
    high_resolution = pictures(hr)
    if not lr.is_dir():
        return [Pair(image, None) for image in high_resolution]
    low_resolution = {path.stem: path for path in pictures(lr)}
    names = [(image.stem, f"{image.stem}x{scale}") for image in high_resolution]
    pairs = [
        Pair(image, low_resolution.get(plain) or low_resolution.get(long))
        for image, (plain, long) in zip(high_resolution, names, strict=True)
    ]
    absent = [pair.hr.name for pair in pairs if pair.lr is None]
    if absent:
        raise UseError(f"{lr}: {len(absent)} of {len(pairs)} low-resolution pictures absent, first of {absent[0]}")
    return pairs


def pictures(folder: Path) -> list[Path]:
    """The images of a folder, sorted by name; UseError where there are none."""
    if not folder.is_dir():
        raise UseError(f"picture folder not found: {folder}")
    paths = sorted(filter(is_picture, folder.iterdir()))
    if not paths:
        raise UseError(f"{folder}: no pictures ({', '.join(SUFFIXES)}) in this folder")
    return paths


def sample_folder() -> Path:
    """The folder of the images that come with scikit-image."""
    return Path(importlib.util.find_spec("skimage").origin).parent / "data"


def sample_pairs(split: str) -> list[Pair]:
    """Those of scikit-image's photographs that are there: nine to train on, three to validate.

    Raises:
        UseError: a scikit-image carries none of them.
    """
    folder = sample_folder()
    paths = [folder / name for name in _SAMPLE[split] if (folder / name).is_file()]
    if not paths:
        raise UseError(f"{folder}: this scikit-image carries none of its pictures: give --hr_path and --data_test")
    return [Pair(path, None) for path in paths]
