"""Which images a command works on: the user's folders, a devkit, VOC where it was prepared, or the sample set."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from sparsemask import tasks
from sparsemask.errors import UseError
from sparsemask.options import spoken
from sparsemask.tasks import LabelledData

ROOT = Path(__file__).resolve().parents[1]
ARCHIVES = "--voc VOCtrainval_11-May-2012.tar --sbd benchmark.tgz"
LISTS = ("training_list", "eval_list")  # name all of the data where a list holds paths
FOLDERS = ("im_path", "gt_path", *LISTS)
# Flags that name all of the data by themselves, the last two those of super-resolution.
WHOLE = ("sample", "data_root", "voc_root", "hr_path", "dir_data")


def cache() -> Path:
    """The toolkit's own folder for what it makes or finds once ($SPARSEMASK_HOME, or the user's cache folder)."""
    override = os.environ.get("SPARSEMASK_HOME")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(override) if override else Path(base) / "sparsemask"


def prepared() -> Path | None:
    """Where VOC12/prepare.py has put VOC: below the working directory, or below the checkout."""
    for base in (Path.cwd(), ROOT):
        folder = base / "VOC12" / "data"
        if all((folder / part).exists() for part in ("img", "gt", "train_aug.txt", "val.txt")):
            return folder
    return None


def choose_data(given: dict, training: bool = True) -> tuple[dict, str, str | None]:
    """Choose the data where flags leave it open: (flags to add, preset of the budget, a line to print or None)."""
    if given.get("sample"):
        return {"sample": True}, "sample", None
    if any(given.get(name) for name in WHOLE) or (given.get("data_test") and not training):
        return {}, "short", None
    task = given.get("task") or "segmentation"
    kind = tasks.find(task)
    if tasks.own_flags(task) and any(given.get(name) for name in LISTS):
        return {}, "short", None
    voc = prepared() if kind.reads_voc else None
    if not tasks.own_flags(task) and any(given.get(name) for name in FOLDERS):
        needed = [name for name in FOLDERS if not given.get(name)]
        if _paired(given):
            return {}, "short", None
        if needed and voc is None:
            flags = ", ".join("--" + name for name in needed)
            raise UseError(f"one's own data needs {flags} too (lists of pairs, picture and label, need no folders)")
        return {name: str(_voc_paths(voc)[name]) for name in needed}, "short", None
    if voc is not None:
        return {name: str(path) for name, path in _voc_paths(voc).items()}, "short", None
    if not kind.reads_voc:
        line = kind.no_data or f"no data named for --task {task} (--{kind.data_flags[0]} FOLDER)"
        if kind.sample_words is None:
            raise UseError(f"{line}, and none comes with the toolkit")
        return {"sample": True}, "sample", f"{line}: going on with {kind.sample_words} and a short budget"
    prepare = spoken("prepare", ARCHIVES)
    line = f"PASCAL VOC 2012 is not prepared here ({prepare}): going on with the embedded sample set and a short budget"
    return {"sample": True}, "sample", line


def _paired(given: dict) -> bool:
    """Whether both lists are there and name images and labels by their paths, so that no folders are needed."""
    from sparsemask.VOC12.lists import lists_pairs

    return all(given.get(name) and Path(given[name]).is_file() and lists_pairs(given[name]) for name in LISTS)


def without_replaced(values: dict, given: dict) -> dict:
    """Flags of a file or a run, without those that name data where `given` names other data."""
    if any(given.get(name) for name in WHOLE):
        gone = (*WHOLE, *FOLDERS, *(("data_test",) if given.get("sample") else ()))
    elif given.get("im_path") or given.get("gt_path"):
        gone = WHOLE
    else:
        return values
    return {name: value for name, value in values.items() if name not in gone}


def _voc_paths(folder: Path) -> dict[str, Path]:
    return {
        "im_path": folder / "img",
        "gt_path": folder / "gt",
        "training_list": folder / "train_aug.txt",
        "eval_list": folder / "val.txt",
    }


def sample_folder() -> Path:
    """The embedded sample set, drawn on first use."""
    from sparsemask.synthetic.segmentation import make_sample

    folder = cache() / "sample"
    if not (folder / "STAMP.json").exists():
        print(f"drawing the sample set into {folder} ...", file=sys.stderr, flush=True)
    make_sample(folder)
    return folder


def pairs(data: LabelledData, split: str) -> list[tuple[Path, Path]]:
    """(image, label) paths of the "training" or the "eval" list."""
    from sparsemask.VOC12 import lists

    name = getattr(data, f"{split}_list")
    if data.sample:
        folder = sample_folder()
        listed = folder / ("train.txt" if split == "training" else "val.txt")
        return lists.pairs_from_lists(folder / "img", folder / "gt", listed)
    if data.voc_root:
        return lists.devkit_pairs(data.voc_root, name or ("train_aug" if split == "training" else "val"))
    if not (data.im_path and data.gt_path and name) and not (name and lists.lists_pairs(name)):
        raise UseError(f"no {split} pictures: give --im_path, --gt_path and --{split}_list, or --voc_root, or --sample")
    return lists.pairs_from_lists(data.im_path, data.gt_path, name)


def class_names(data: LabelledData) -> list[str]:
    """The names of the classes: from a file, the sample set, VOC's where there are 21, else numbers."""
    from sparsemask.VOC12.dataset import load_class_names

    path = data.class_names
    if path is None and data.sample:
        path = sample_folder() / "class_names.txt"
    return load_class_names(path, data.n_class)


def backbone_weights(name: str, given: str | None) -> Path | None:
    """ImageNet weights of an encoder: the flag, $SPARSEMASK_WEIGHTS (a file or folder), the cache; None without."""
    if given:
        if not Path(given).is_file():
            raise UseError(f"--pretrained_model: no such file: {given}")
        return Path(given)
    override = os.environ.get("SPARSEMASK_WEIGHTS")
    if override and Path(override).is_file():
        return Path(override)
    if override and not Path(override).is_dir():
        raise UseError(f"SPARSEMASK_WEIGHTS: no such file or folder: {override}")
    for folder in [Path(override)] if override else [cache() / "weights"]:
        # "mobilenet_v2-b0353104.pth" is such a file; "vgg16_bn-6c64b313.pth" is not one of vgg16.
        pattern = re.compile(re.escape(name) + r"([-.]|_imagenet|_ra|$)")
        files = sorted(
            p for p in folder.glob("*") if p.suffix in (".pth", ".pt", ".tar", ".safetensors") and pattern.match(p.stem)
        )
        if files:
            return files[0]
    return None
