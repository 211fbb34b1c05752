"""Flags that a command inherits from the run that its mask or weights come from: data, classes, network, preset.

``retrain --mask_path mask.npy`` then works on the data of the search. Flags of the command line and of ``--config``
have priority.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sparsemask import datasets, masks, tasks
from sparsemask import options as opt
from sparsemask.config import RunConfig
from sparsemask.containers import read_yaml
from sparsemask.errors import UseError
from sparsemask.masks import npz
from sparsemask.runs import Run

# Flags that name what a command starts from; of several the first one's run says which data are meant.
STARTS = ("run", "ft_model", "mask_path", "search_checkpoint", "pretrained_model")
_ENCODER = ("backbone_name", "depth", "bn_momentum")
_NOT_DATA = {"n_worker"}  # how data are read


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
        return f"as in {shown_path(self.run.folder)}: {shlex.join(opt.spelled(changed))}" if changed else None


def find(requested: Mapping) -> Origin | None:
    """The run that the `requested` flags start from, None without any; a deleted one only where no other is named."""
    gone = None
    for name in STARTS:
        if not requested.get(name):
            continue
        folder = _folder(requested[name]) if name == "run" else None
        origin = (
            Origin(f"--run {requested[name]}", folder)
            if folder
            else _of(f"--{name} {requested[name]}", requested[name], name)
        )
        if origin and origin.exists:
            return origin
        gone = gone or origin
    return gone


def search_of(mask_path: str | Path | None) -> Run | None:
    """The search run that a mask file was pruned from; None where it no longer exists."""
    run = _noted_run(mask_path) if mask_path else None
    return run if run and run.config.is_file() else None


def shown_path(path: str | Path) -> str:
    """A path for messages: relative to the working directory where it lies below it."""
    absolute, working_directory = Path(path).absolute(), Path.cwd()
    return str(absolute.relative_to(working_directory)) if absolute.is_relative_to(working_directory) else str(path)


def _folder(path: str | Path) -> Run | None:
    run = Run(path)
    return run if run.config.is_file() and run.info_file.is_file() else None


def _holding(path: str | Path) -> Run | None:
    """The run whose folder a file lies in."""
    folder = Path(path).absolute().parent
    return _folder(folder) or _folder(folder.parent)


def _of(title: str, path: str, flag: str) -> Origin | None:
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


def take(parser: opt.Parser, requested: Mapping, training: bool = True) -> Inherited:
    """The flags that the command inherits from the run that the `requested` flags start from.

    Args:
        parser: of the command.
        requested: its flags, and those of --config.
        training: False for evaluation, which also inherits sizes that the run had from its preset.

    Raises:
        UseError: the run or its data no longer exist and no other data are named.
    """
    origin = find(requested)
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
    parts = datasets.LISTS if tasks.own_flags(str(task)) else datasets.FOLDERS
    if any(requested.get(n) for n in datasets.WHOLE) or all(requested.get(n) for n in parts):
        return {"task": task} if isinstance(task, str) else {}
    if any(requested.get(n) for n in ("data_test", *(() if tasks.own_flags(str(task)) else datasets.FOLDERS))):
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
    names = tasks.find(task).data_flags if isinstance(task, str) else datasets.WHOLE
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
    if datasets.backbone_weights(str(name), None) is None:
        raise UseError(
            f"--pretrained_model {path}: gone since {shown_path(run.folder)} was made with it; say by "
            "--pretrained_model where it is now, or take --inherit encoder"
        )
    return None  # found elsewhere, as the verb will say
