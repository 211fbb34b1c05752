"""Which data and weights a command works on: those that are named, those of the run it starts from, or what is found.

``retrain --mask_path mask.npy`` works on the data of the search that the mask comes from: data, classes, network and
preset are inherited, and flags of the command line and of ``--config`` have priority. Where nothing says which data are
meant they are VOC where it was prepared, else the sample set.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sparsemask import masks, tasks
from sparsemask import options as opt
from sparsemask.command_lines import is_given, spoken
from sparsemask.config import RunConfig
from sparsemask.containers import read_yaml
from sparsemask.errors import UseError
from sparsemask.files import shown_path
from sparsemask.masks import npz
from sparsemask.runs import Run
from sparsemask.tasks import LabelledData

ROOT = Path(__file__).resolve().parents[1]
ARCHIVES = "--voc VOCtrainval_11-May-2012.tar --sbd benchmark.tgz"
LISTS = ("training_list", "eval_list")  # name all of the data where a list holds paths
FOLDERS = ("im_path", "gt_path", *LISTS)
# Flags that name all of the data by themselves, the last two those of super-resolution.
WHOLE = ("sample", "data_root", "voc_root", "hr_path", "dir_data")
# Flags that name what a command starts from; of several the first one's run says which data are meant.
STARTS = ("run", "ft_model", "mask_path", "search_checkpoint", "pretrained_model")
_ENCODER = ("backbone_name", "depth", "bn_momentum")
_NOT_DATA = {"n_worker"}  # how data are read


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

    name = data.training_list if split == "training" else data.eval_list
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


@dataclass(frozen=True)
class Origin:
    """The run that a file comes from.

    Attributes:
        what: the flag and the file, for messages.
        run: the run.
        exists: whether its folder still exists.
    """

    what: str
    run: Run
    exists: bool = True


@dataclass(frozen=True)
class Inherited:
    """The inherited `flags` by name, the `run` that they come from, and its preset."""

    run: Run | None = None
    flags: dict = field(default_factory=dict)
    preset: str | None = None

    def line(self, parser: opt.Parser) -> str | None:
        """The inherited flags as they would stand on a command line; None where there are none."""
        changed = {n: v for n, v in self.flags.items() if v != parser.get_default(n)}
        if not changed:
            return None
        where = f"as in {shown_path(self.run.folder)}:"
        if is_given(changed):  # names that nobody types
            where += " the program's pictures"
            changed = {n: v for n, v in changed.items() if n not in ("task", "data_root", "n_worker")}
        return f"{where} {shlex.join(opt.spelled(changed))}".rstrip()


def origin_of(requested: Mapping) -> Origin | None:
    """The run that the `requested` flags start from, None without any; a deleted one only where no other is named."""
    gone = None
    for name in STARTS:
        if not requested.get(name):
            continue
        folder = _run_in(requested[name]) if name == "run" else None
        origin = (
            Origin(f"--run {requested[name]}", folder)
            if folder
            else _origin(f"--{name} {requested[name]}", requested[name], name)
        )
        if origin and origin.exists:
            return origin
        gone = gone or origin
    return gone


def search_of(mask_path: str | Path | None) -> Run | None:
    """The search run that a mask file was pruned from; None where it no longer exists."""
    run = _noted_run(mask_path) if mask_path else None
    return run if run and run.config.is_file() else None


def _run_in(path: str | Path) -> Run | None:
    run = Run(path)
    return run if run.config.is_file() and run.info_file.is_file() else None


def _holding(path: str | Path) -> Run | None:
    """The run whose folder a file lies in."""
    folder = Path(path).absolute().parent
    return _run_in(folder) or _run_in(folder.parent)


def _origin(title: str, path: str, flag: str) -> Origin | None:
    if not Path(path).is_file():
        return None  # a named mask, or a mistake that the verb reports
    if run := _holding(path):
        return Origin(title, run)
    if flag == "mask_path" and (noted_run := _noted_run(path)):
        return Origin(title, noted_run, noted_run.config.is_file())
    return None


def _noted_run(mask_path: str | Path) -> Run | None:
    """The run named in a mask file or in the json beside it; it may no longer exist."""
    path = Path(mask_path)
    if not path.is_file():
        return None
    note = masks.mask_note(path)
    if isinstance(note.get("carried_from"), dict):
        note = {**note["carried_from"], **note}
    if isinstance(note.get("run"), str):
        return Run(note["run"])
    checkpoint = note.get("checkpoint")
    if checkpoint is None and npz.file_space(path):
        checkpoint = str(npz.read_arrays(path).get("checkpoint", ""))
    return _holding(checkpoint) if isinstance(checkpoint, str) and checkpoint else None


def read_flags(run: Run) -> dict:
    """The flags of a run's config.yaml as they stand there."""
    content = read_yaml(run.config)
    if not isinstance(content, dict):
        raise UseError(f"{run.config}: expected a mapping of flags, found {type(content).__name__}")
    return content


def preset_of(run: Run) -> str:
    """The preset that a run's flags were laid over."""
    preset = run.info().get("preset") if run.info_file.is_file() else None
    if isinstance(preset, str):
        return preset
    return "sample" if read_flags(run).get("sample") is True else "short"


def inherited_flags(parser: opt.Parser, requested: Mapping, training: bool = True) -> Inherited:
    """The flags that the command inherits from the run that the `requested` flags start from.

    Args:
        parser: of the command.
        requested: its flags, and those of --config.
        training: False for evaluation, which also inherits sizes that the run had from its preset.

    Raises:
        UseError: the run or its data no longer exist and no other data are named.
    """
    origin = origin_of(requested)
    if origin is None:
        return Inherited()
    names = [name for name in parser.group("data") if name not in _NOT_DATA]
    if not origin.exists:
        if any(requested.get(name) for name in _naming(requested.get("task") or parser.get_default("task"))):
            return Inherited()
        raise UseError(
            f"{origin.what}: comes from the run {shown_path(origin.run.folder)}, which is gone, and with it which data "
            f"are meant: name them ({_data_words(parser)}), or --sample"
        )
    run, saved = origin.run, read_flags(origin.run)
    space = parser.get_default("space")
    preset = preset_of(run)
    values = opt.preset_flags(preset, str(run.info().get("verb")), str(saved.get("space")))
    verb_defaults = opt.preset_flags(preset, parser.verb, space) if training else {}
    # What the run had from its preset gives way to what the preset has for this verb.
    inherited = {n: v for n, v in saved.items() if not (n in verb_defaults and n in values and values[n] == v)}
    chosen = data_of(inherited, requested, names, run)
    if saved.get("space") == "connectivity" and space in ("connectivity", "specialized"):
        chosen |= {n: inherited[n] for n in _ENCODER if inherited.get(n) is not None and n in parser.actions()}
    chosen = {n: v for n, v in parser.checked(chosen, run.config, foreign=True).items() if not requested.get(n)}
    was, now = bool(saved.get("sample")), bool(chosen.get("sample") or requested.get("sample"))
    fits = was == now or not (now or preset.endswith("sample"))  # the sample set has presets of its own
    return Inherited(run, chosen, preset if fits and opt.preset_name(preset, space) else None)


def data_of(saved: Mapping, requested: Mapping, names: Iterable[str], run: Run | str) -> dict:
    """The flags among `names` by which a run (`saved`) named its data, as far as `requested` does not name others.

    Raises:
        UseError: a file or folder among them no longer exists.
    """
    task = saved.get("task")
    if requested.get("task") and requested["task"] != task:
        return {}  # another task's data
    data_flags = {n: saved[n] for n in names if saved.get(n) is not None and saved[n] is not False}
    parts = LISTS if tasks.own_flags(str(task)) else FOLDERS
    if any(requested.get(n) for n in WHOLE) or all(requested.get(n) for n in parts):
        return {"task": task} if isinstance(task, str) else {}
    if any(requested.get(n) for n in ("data_test", *(() if tasks.own_flags(str(task)) else FOLDERS))):
        data_flags.pop("sample", None)  # stereo's lists win over it one by one
    for name, value in data_flags.items():
        gone = (
            isinstance(value, str) and name not in requested and Path(value).is_absolute() and not Path(value).exists()
        )
        if gone:
            folder = shown_path(run.folder if isinstance(run, Run) else run)
            raise UseError(
                f"--{name} {value}: gone since {folder} was made with it; say by --{name} where it is now, or name "
                "other data"
            )
    return data_flags


def _naming(task: object) -> tuple[str, ...]:
    """The flags that name a task's data."""
    names = tasks.find(task).data_flags if isinstance(task, str) else WHOLE
    return (*names, "sample")


def _data_words(parser: opt.Parser) -> str:
    return ", ".join(f"--{n}" for n in _naming(parser.get_default("task")) if n != "sample")


def encoder_weights(run: Run, config: RunConfig) -> str | None:
    """The file of encoder weights that a run started from, where a retraining starts from an encoder too; else None.

    Raises:
        UseError: the file no longer exists, and no weights are found in the usual places.
    """
    saved = read_flags(run)
    path, name = saved.get("pretrained_model"), saved.get("backbone_name")
    alternatives = (config.network.pretrained_model, config.family.ft_model, config.family.inherit != "none")
    if any(alternatives) or saved.get("space") != "connectivity" or not isinstance(path, str):
        return None
    if config.network.backbone_name != name or npz.is_fine(config.family.mask_path):
        return None
    if Path(path).is_file():
        return path
    if backbone_weights(str(name), None) is None:
        raise UseError(
            f"--pretrained_model {path}: gone since {shown_path(run.folder)} was made with it; say by "
            "--pretrained_model where it is now, or take --inherit encoder"
        )
    return None  # found elsewhere, as the verb will say
