"""Run folders: creating, finding and locking them.

``<exp_path>/<name>/`` holds config.yaml (starts the same run again), run.json (what it is and how it ended),
checkpoints/, metrics.jsonl, tensorboard/, pictures/ and the mask or network that came out.
"""

from __future__ import annotations

import contextlib
import re
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sparsemask import locks
from sparsemask import options as opt
from sparsemask.command_lines import following, spoken
from sparsemask.config import RunConfig
from sparsemask.errors import UseError, say
from sparsemask.files import read_json, remove_stale, write_json

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


class Run:
    """One run's folder."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._lock: locks.Lock | None = None  # held as long as this object lives
        self.fresh = False  # made by this process: its own to take away again

    config = property(lambda self: self.folder / "config.yaml")
    checkpoints = property(lambda self: self.folder / "checkpoints")
    last = property(lambda self: self.checkpoints / "last.pt")
    best = property(lambda self: self.checkpoints / "best.pt")
    metrics = property(lambda self: self.folder / "metrics.jsonl")
    history = property(lambda self: self.folder / "history.jsonl")
    tensorboard = property(lambda self: self.folder / "tensorboard")
    pictures = property(lambda self: self.folder / "pictures")
    info_file = property(lambda self: self.folder / "run.json")
    _lock_file = property(lambda self: self.folder / ".lock")

    def info(self) -> dict[str, Any]:
        """What run.json says; empty when there is none."""
        return read_json(self.info_file) if self.info_file.exists() else {}

    def note(self, **entries: object) -> None:
        """Add entries to run.json."""
        write_json(self.info_file, {**self.info(), **entries})

    def hold(self) -> Run:
        """Lock the folder for this process, and remove temporary files of killed ones; a kill releases the lock.

        Raises:
            UseError: another process is at work in it.
        """
        try:
            self._lock = locks.acquire_for_process(self._lock_file)
        except OSError as error:
            if error.filename is not None:  # a file that cannot be opened
                raise
            raise UseError(f"{self.folder}: cannot be locked for this run: {error.strerror or error}") from None
        if self._lock is None:
            raise UseError(f"{self.folder}: another process is at work in this run")
        remove_stale(self.folder)
        return self

    def is_held(self) -> bool:
        """Whether a process is at work in the folder."""
        try:
            return locks.is_held(self._lock_file)
        except OSError:  # it cannot be known
            return True

    def discard(self) -> None:
        """Remove the folder that this process has made, unless another process is at work in it."""
        if self._lock is not None:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            with contextlib.suppress(OSError):  # not there, or not empty
                self.folder.rmdir()


def create(config: RunConfig, verb: str) -> Run:
    """Make the folder of a new run and write its configuration; UseError when the name is taken."""
    name = config.run.name or _free_name(Path(config.run.exp_path), f"{verb}-{time.strftime('%Y%m%d-%H%M%S')}")
    if not _NAME.fullmatch(name):
        raise UseError(f"--name '{name}': letters, digits and . _ + - only, not beginning with a sign")
    run = Run(Path(config.run.exp_path) / name)
    if run.config.exists():
        raise UseError(f"run {run.folder} exists; take another --name, or go on with it by --resume {run.folder}")
    if run.folder.exists() and any(not _left_behind(path) for path in run.folder.iterdir()):
        raise UseError(f"--name {name}: {run.folder} is there already and is no run; take another name")
    run.fresh = True
    info = {
        "verb": verb,
        "space": config.network.space,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "state": "running",
    }
    try:
        run.hold()
        if run.config.exists():  # made by another process a moment ago, which has ended meanwhile
            run.fresh = False
            raise UseError(f"run {run.folder} exists; take another --name, or go on with it by --resume {run.folder}")
        opt.write_config(run.config, config.replace(name=name))
        write_json(run.info_file, info)
    except BaseException:
        if run.fresh:
            run.discard()
        raise
    return run


def _left_behind(path: Path) -> bool:
    """Whether a file, in a folder without a configuration, was left by a killed process."""
    return path.name == ".lock" or (path.name.startswith(".") and path.name.endswith(".part"))


def _free_name(folder: Path, name: str) -> str:
    tries = [name, *(f"{name}-{i}" for i in range(2, 100))]
    return next((n for n in tries if not (folder / n).exists()), name)


def find(folder: str | Path) -> Run:
    """An existing run by its folder; UseError when it is none."""
    run = Run(folder)
    if not run.config.is_file():
        raise UseError(f"{folder}: no run here (no config.yaml)")
    return run


def newest(exp_path: str | Path, verb: str, space: str | None = None) -> Run:
    """The newest run of a verb that has a checkpoint.

    Args:
        exp_path: folder of the runs.
        verb: search or retrain, as run.json names it.
        space: only runs of this space; None: of any.

    Raises:
        UseError: there is none; the message names the command that makes one.
    """
    run = _newest(exp_path, verb, space)
    if run is None:
        made_by = spoken(verb, "--mask_path mask.npy" if verb == "retrain" else "")
        raise UseError(f"no finished or running {verb} with a checkpoint in '{exp_path}/'; make one: {made_by}")
    unfinished = "" if run.info().get("state") == "finished" else " (not finished)"
    say(f"run: {run.folder}{unfinished}")
    return run


def newest_space(exp_path: str | Path, verb: str) -> str | None:
    """The space of the newest run of a verb that has a checkpoint; None without any."""
    run = _newest(exp_path, verb, None, quiet=True)
    space = run.info().get("space") if run else None
    return space if isinstance(space, str) else None


def _newest(exp_path: str | Path, verb: str, space: str | None, quiet: bool = False) -> Run | None:
    candidates = []
    for config in Path(exp_path).glob("*/config.yaml"):
        run = Run(config.parent)
        try:
            info = run.info()
        except UseError as error:
            if not quiet:
                say(f"passed over: {error}", sys.stderr)
            continue
        if info.get("verb") == verb and run.last.exists() and space in (None, info.get("space")):
            candidates.append((info.get("started", ""), run.last.stat().st_mtime, run))
    return max(candidates, key=lambda entry: entry[:2])[2] if candidates else None


def origin_note(config: RunConfig, run: Run | None, path: Path, digest: str, rule: Sequence[str]) -> dict[str, Any]:
    """What the json beside a mask says of its origin.

    Args:
        config: of the pruning.
        run: the search, if it is a run.
        path: its checkpoint.
        digest: the checkpoint's SHA-256.
        rule: names of the flags that determine the mask.
    """
    return {
        "space": config.network.space,
        "run": str(run.folder.resolve()) if run else None,
        "checkpoint": str(path.resolve()),
        "sha256": digest,
        "rule": {name: config[name] for name in rule},
    }


def say_pruned(masks: Sequence[Path], run: Run | None, saved: Mapping[str, Any]) -> None:
    """Print the files that a mask was written to, and the command line that retrains with the last one.

    Args:
        masks: the files.
        run: the search, if it is a run.
        saved: flags of the search.
    """
    say(f"mask: {' and '.join(map(str, masks))}")
    rest = f"--mask_path {shlex.quote(str(masks[-1]))}"
    say(f"next: {following('retrain', rest, saved, run.folder if run else None)}")
