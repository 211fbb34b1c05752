"""Shared by the families' pruning: output files, notes, and the data that masks are measured on."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sparsemask import datasets, inherit, tasks, training_setup
from sparsemask.config import RunConfig, Section, flag
from sparsemask.errors import UseError, say
from sparsemask.options import following, natural, positive
from sparsemask.runs import Run
from sparsemask.spaces import Space


def output_path(out: str | None, suffix: str, kind: str) -> Path:
    """Return the path of the mask file to write.

    Args:
        out: value of --out; None: "mask" in the current folder.
        suffix: required suffix.
        kind: subject and verb of the error message, such as "a connectivity mask is".

    Raises:
        UseError: another suffix, or a folder that does not exist.
    """
    path = Path(out or f"mask{suffix}")
    if path.suffix != suffix:
        raise UseError(f"--out {path}: {kind} a {suffix} file")
    if not path.parent.is_dir():
        raise UseError(f"--out {path}: no such folder: {path.parent}")
    return path


def origin_note(config: RunConfig, run: Run | None, path: Path, digest: str, rule: Sequence[str]) -> dict:
    """Return the origin of a mask for its json note.

    Args:
        config: of the command.
        run: the search run, if it is one.
        path: the checkpoint.
        digest: its SHA-256.
        rule: names of the flags that determine the mask.
    """
    return {
        "space": config.network.space,
        "run": str(run.folder.resolve()) if run else None,
        "checkpoint": str(path.resolve()),
        "sha256": digest,
        "rule": {name: config[name] for name in rule},
    }


def next_line(out: Path, run: Run | None, saved: dict) -> str:
    """Return a line with the command for retraining with a mask file.

    Args:
        out: the mask file.
        run: the search run, if it is one.
        saved: flags of the search.
    """
    command = following("retrain", f"--mask_path {shlex.quote(str(out))}", saved, run.folder if run else None)
    return f"next: {command}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSection(Section):
    """Flags of the search with which a mask is measured."""

    batch_size: int | None = flag(None, positive, help="pictures a step")
    seed: int = flag(0, natural, help="seed of everything random")


def with_search(config: RunConfig, given: Mapping, saved: Mapping, known: Mapping, space: Space) -> RunConfig:
    """Complete a pruning's configuration by its search's network, and by its data unless the command line names others.

    Args:
        config: the command's.
        given: the flags that the user named on the command line.
        saved: the flags of the search.
        known: the network's hyperparameters and other values for the measurement, by flag; unknown ones are ignored.
        space: of the network.
    """
    sections = {"network": space.section(space=space.name), "training": SearchSection()}
    config = dataclasses.replace(config, **sections)
    config = config.replace(**{name: value for name, value in known.items() if name in config})
    if saved.get("task") in tasks.siblings(config.data.task) and "task" not in given:
        config = config.replace(task=saved["task"])
    kind = tasks.find(config.data.task)
    selected = {name: config[name] for name in (*kind.data_flags, "sample") if config.get(name)}
    selected["task"] = config.data.task
    names = {*kind.data_flags, *kind.score_flags, "sample"} & set(config)
    inherited = inherit.data_of(saved, selected, names, config.run.run or config.run.checkpoint or "the search")
    config = config.replace(**{name: value for name, value in inherited.items() if name in names and name not in given})
    chosen, _, line = datasets.choose_data({name: value for name, value in config.items() if value}, training=False)
    if line:
        say(line)
    config = config.replace(**chosen)
    training_setup.prepare(config)
    return config
