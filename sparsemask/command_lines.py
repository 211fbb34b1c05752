"""Command lines as this user types them, for help, advice and reports; calls where a program holds the pictures."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsemask.plugins import GIVEN, is_own, trusted

# What people type in a checkout for each verb; an installed toolkit has only the one command.
_FILES = {
    "search": "python search/run.py --search",
    "prune": "python prune/prune.py",
    "retrain": "python retrain/train.py",
    "eval": "python retrain/eval.py",
    "specialize": "python retrain/specialize.py",
    "export": "python retrain/export.py",
    "study": "python search/study.py",
    "prepare": "python VOC12/prepare.py",
    "check": "python VOC12/check.py",
    "sample": "python VOC12/sample.py",
}
_ROOT = Path(__file__).resolve().parents[1]
# Of the calls in Python: the verb's function, and the flag that is its first argument.
_CALLS = {
    "search": ("sparsemask.api.search", None),
    "prune": ("sparsemask.api.prune", "run"),
    "retrain": ("sparsemask.api.retrain", "mask_path"),
    "eval": ("sparsemask.api.evaluate", "run"),
}


def as_command() -> bool:
    """Whether this user has the command `sparsemask`, and not the files of a checkout."""
    installed = not (_ROOT / "search" / "run.py").is_file()
    return installed or Path(sys.argv[0]).name in ("sparsemask", "__main__.py")


def spoken(verb: str, rest: str = "") -> str:
    """The command line of a verb as this user types it, for advice."""
    return f"{f'sparsemask {verb}' if as_command() else _FILES[verb]} {rest}".strip()


def as_typed(text: str) -> str:
    """A text that names commands by a checkout's files, as this user types them."""
    if not as_command():
        return text
    for verb, line in _FILES.items():
        file = line.removesuffix(" --search")
        text = re.sub(rf"{re.escape(file)}( --search\b)?", f"sparsemask {verb}", text)
    return text


def following(verb: str, rest: str, config: Mapping[str, Any], folder: str | Path | None = None) -> str:
    """The whole command line of the verb that goes on from a run, as this user types it; a call where no command can.

    Args:
        verb: what comes next.
        rest: its flags.
        config: the run's flags; code that they name, and this command line too, is named again, since a file's word
            imports nothing.
        folder: the run's, for verbs that make a run beside it; None for those that name it in `rest`.
    """
    words = [rest]
    if folder is not None and Path(folder).resolve().parent != Path("runs").resolve():
        words.append(f"--exp_path {shlex.quote(str(Path(folder).parent))}")
    if is_given(config) and verb in _CALLS:
        return _call(verb, shlex.split(" ".join(words)))
    own = [(name, str(config.get(name) or "")) for name in ("task", "backbone_name", "arch")]
    if verb in ("retrain", "specialize"):
        own.append(("augment", str(config.get("augment") or "")))
    for name, value in own:
        # Only where the user said it: typed as it is printed, a stranger's file would have its code run. Pruning has
        # none of these flags.
        if is_own(value) and value in trusted():
            words.append(f"--{'trust' if verb == 'prune' else name} {shlex.quote(value)}")
    return spoken(verb, " ".join(words))


def again(verb: str, rest: str, config: Mapping[str, Any]) -> str:
    """The command line that starts a run again or goes on with it, as this user types it; likewise a call.

    Args:
        verb: the run's.
        rest: the flags.
        config: the run's flags.
    """
    if not is_given(config) or verb not in _CALLS:
        return spoken(verb, rest)
    words = shlex.split(rest)
    if verb == "retrain" and config.get("mask_path"):
        words = ["--mask_path", str(config["mask_path"]), *words]
    return _call(verb, words, "train=train", "val=val", "classes=classes")


def is_given(config: Mapping[str, Any]) -> bool:
    """Whether a run's pictures are those of a program, which no command can read."""
    return str(config.get("task") or "").startswith(f"{GIVEN}:")


def _call(verb: str, words: list[str], *data: str) -> str:
    """The call in Python for a verb's flags, each with one value."""
    function, first = _CALLS[verb]
    flags = {name.removeprefix("--"): value for name, value in zip(words[::2], words[1::2], strict=True)}
    arguments = [repr(flags.pop(first))] if first in flags else []
    arguments += [*data, *(f"{name}={_literal(value)}" for name, value in flags.items())]
    if verb == "prune":
        arguments.append("out='mask.npy'")
    return f"{function}({', '.join(arguments)})"


def _literal(value: str) -> str:
    """A flag's value in Python: a number as it stands, other words as a text."""
    try:
        float(value)
    except ValueError:
        return repr(value)
    return value
