"""What several families' pruning has in common: files and notes, and the data that masks are measured on."""

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
    """The mask file to write; UseError where it cannot be one of `suffix` in a folder that is there.

    kind: what the file holds, with its verb, for the message.
    """
    path = Path(out or f"mask{suffix}")
    if path.suffix != suffix:
        raise UseError(f"--out {path}: {kind} a {suffix} file")
    if not path.parent.is_dir():
        raise UseError(f"--out {path}: no such folder: {path.parent}")
    return path


def origin_note(config: RunConfig, run: Run | None, path: Path, digest: str, rule: Sequence[str]) -> dict:
    """Where a mask comes from, for the json beside it: run, checkpoint and the flags that are its rule."""
    return {
        "space": config.network.space,
        "run": str(run.folder.resolve()) if run else None,
        "checkpoint": str(path.resolve()),
        "sha256": digest,
        "rule": {name: config[name] for name in rule},
    }


def next_line(out: Path, run: Run | None, saved: dict) -> str:
    """The line that says what to do with a mask file. saved: the flags of its search."""
    said = following("retrain", f"--mask_path {shlex.quote(str(out))}", saved, run.folder if run else None)
    return f"next: {said}"


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSection(Section):
    """What of its search a mask is measured with."""

    batch_size: int | None = flag(None, positive, help="pictures a step")
    seed: int = flag(0, natural, help="seed of everything random")


def with_search(config: RunConfig, given: Mapping, saved: Mapping, known: Mapping, space: Space) -> RunConfig:
    """A pruning's configuration with the network of its search, and its data where the command line names no others.

    Args:
        config: the command's.
        given: the flags that the user named on the command line.
        saved: the flags of the search.
        known: numbers of the network, and what else a mask is measured with, by flag; foreign ones are passed over.
        space: of the network.
    """
    sections = {"network": space.section(space=space.name), "training": SearchSection()}
    config = dataclasses.replace(config, **sections)
    config = config.replace(**{name: value for name, value in known.items() if name in config})
    if saved.get("task") in tasks.siblings(config.data.task) and "task" not in given:
        config = config.replace(task=saved["task"])
    kind = tasks.find(config.data.task)
    asked = {name: config[name] for name in (*kind.data_flags, "sample") if config.get(name)}
    asked["task"] = config.data.task
    names = {*kind.data_flags, *kind.score_flags, "sample"} & set(config)
    found = inherit.data_of(saved, asked, names, config.run.run or config.run.checkpoint or "the search")
    config = config.replace(**{name: value for name, value in found.items() if name in names and name not in given})
    chosen, _, line = datasets.choose_data({name: value for name, value in config.items() if value}, training=False)
    if line:
        say(line)
    config = config.replace(**chosen)
    training_setup.prepare(config)
    return config
