"""Merging VOC and SBD: whose names, images and labels go where."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sparsemask.errors import UseError
from sparsemask.VOC12.archives import Source
from sparsemask.VOC12.convert import copy_picture, looks_whole, mat_to_png, png_to_index

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


@dataclass(frozen=True)
class Job:
    """One file to write: `function(content of name, target, name)`."""

    function: Callable
    source: Source
    name: str  # in the source
    target: Path


def merge_lists(voc: Source, sbd: Source, expect: tuple[int, int, int]) -> dict[str, list[str]]:
    """Merge the lists of VOC and SBD: train_aug = (SBD train + SBD val + VOC train) - VOC val.

    Args:
        voc: the VOC data set.
        sbd: the SBD data set.
        expect: sizes of train, val and train_aug.

    Returns:
        Names by list: train, val, trainval, train_aug.

    Raises:
        UseError: a list has another size than expected.
    """
    train, val = (_read_names(voc, f"ImageSets/Segmentation/{name}.txt") for name in ("train", "val"))
    extra = [name for part in ("train.txt", "val.txt") for name in _read_names(sbd, part)]
    lists = {
        "train": train,
        "val": val,
        "trainval": sorted({*train, *val}),
        "train_aug": sorted({*extra, *train} - {*val}),
    }
    for name, expected in zip(("train", "val", "train_aug"), expect, strict=True):
        if len(lists[name]) != expected:
            raise UseError(
                f"the archives give {len(lists[name])} names for {name}, expected {expected}: other releases "
                "than VOC 2012 trainval and SBD? if they are meant, say so with --expect TRAIN,VAL,TRAIN_AUG"
            )
    return lists


def _read_names(source: Source, path: str) -> list[str]:
    names = source.read(path).decode("utf-8", "replace").split()
    for name in names:
        if not _NAME.fullmatch(name):  # names become file names here: no path may hide in one
            raise UseError(f"{path}: {name!r} is no picture name (letters, digits, '_', '-', '.')")
    return list(dict.fromkeys(names))


def plan(voc: Source, sbd: Source, lists: dict[str, list[str]], out: Path) -> tuple[list[Job], int]:
    """Files still to be written, in the order that reads the archives fastest, and how many are there."""
    sources = (voc, sbd)
    held = [set(source.names) for source in sources]
    planned: dict[tuple[int, str], Job] = {}
    absent: list[str] = []

    def add(title: str, target: Path, *choices: tuple[int, str, Callable]) -> None:
        """Plan one file from the first source that has it."""
        for number, path, function in choices:
            if path in held[number]:
                planned[number, path] = Job(function, sources[number], path, target)
                return
        absent.append(title)

    for name in sorted({*lists["train_aug"], *lists["val"]}):
        image, label = f"{name}.jpg", f"{name}.png"
        pictures = ((0, f"JPEGImages/{image}", copy_picture), (1, f"img/{image}", copy_picture))
        add(f"picture {image}", out / "img" / image, *pictures)
        labels = ((0, f"SegmentationClass/{label}", png_to_index), (1, f"cls/{name}.mat", mat_to_png))
        add(f"label {name}", out / "gt" / label, *labels)
    if absent:
        raise UseError(f"{len(absent)} listed files are in neither archive, first {absent[0]}; are they complete?")
    ordered = [planned[key] for i, s in enumerate(sources) for name in s.names if (key := (i, name)) in planned]
    jobs = [job for job in ordered if not _there(job)]
    return jobs, len(ordered) - len(jobs)


def _there(job: Job) -> bool:
    if job.function is copy_picture:
        return job.target.is_file() and job.target.stat().st_size == job.source.size(job.name)
    return looks_whole(job.target)
