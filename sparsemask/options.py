"""Command lines and configuration files: every flag can come from YAML, and a run's own file starts it again.

Precedence, lowest first: a flag's default, the preset chosen for the data at hand, ``--config``, the command line.
A preset or configuration file is a flat mapping of flag names; the sections ``search:`` and ``retrain:`` hold what
holds for one verb only.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import yaml

from sparsemask.errors import UseError
from sparsemask.files import write_text

SECTIONS = ("search", "prune", "retrain", "eval", "specialize", "study")
# Flags that steer one call and do not belong to the run: never written to its configuration.
TRANSIENT = {"config", "resume", "help", "given"}


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are errors of use: one line, exit status 2."""

    def __init__(self, verb: str, **kwargs):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        if _as_command():
            kwargs["prog"] = f"sparsemask {verb}"
        super().__init__(allow_abbrev=False, **kwargs)
        self.verb = verb

    def error(self, message: str):
        raise UseError(f"{message} (see {self.prog} --help)")

    def actions(self) -> dict[str, argparse.Action]:
        """Every flag's action by its name in a configuration file."""
        return {a.dest: a for a in self._actions if a.dest != "help" and not a.dest.startswith("_")}

    def given(self, argv: Sequence[str] | None) -> dict:
        """Only the flags that stand on the command line, parsed."""
        kept = {action: (action.default, action.required) for action in self._actions}
        try:
            for action in self._actions:
                action.default, action.required = argparse.SUPPRESS, False
            return {k: v for k, v in vars(self.parse_args(argv)).items() if not k.startswith("_")}
        finally:
            for action, (default, required) in kept.items():
                action.default, action.required = default, required

    def resolve(self, *layers: dict) -> argparse.Namespace:
        """Lay mappings of flags over the defaults, the last one on top."""
        values = {name: action.default for name, action in self.actions().items()}
        for layer in layers:
            values.update(layer)
        return argparse.Namespace(**values)

    def from_file(self, path: str | Path, foreign: bool = False) -> dict:
        """Flags from a YAML file (or a preset's name), checked like the command line's.

        foreign: pass over flags that this verb does not have instead of refusing them.
        """
        path = find_config(path, self.get_default("space"))
        try:
            content = yaml.safe_load(path.read_text())
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise UseError(f"{path}: not readable as YAML ({error})") from None
        if content is None:
            content = {}
        if not isinstance(content, dict):
            raise UseError(f"{path}: expected a mapping of flags, found {type(content).__name__}")
        flat = {k: v for k, v in content.items() if k not in SECTIONS}
        section = content.get(self.verb) or {}
        if not isinstance(section, dict):
            raise UseError(f"{path}: section '{self.verb}' must be a mapping of flags")
        return self.checked({**flat, **section}, path, foreign)

    def checked(self, flags: dict, what: object, foreign: bool = False) -> dict:
        """Flags by name as the command line would parse them; UseError naming `what` where one is none or ill-typed.

        foreign: as in :meth:`from_file`.
        """
        if foreign:
            flags = {name: value for name, value in flags.items() if name in self.actions()}
        return {name: self._checked(name, value, what) for name, value in flags.items()}

    def _checked(self, name: str, value, path: object):
        actions = self.actions()
        if name not in actions:
            near = difflib.get_close_matches(str(name), actions, 1)
            hint = f"; did you mean '{near[0]}'?" if near else ""
            raise UseError(f"{path}: unknown flag '{name}'{hint}")
        action = actions[name]
        if value is None:
            return None
        if action.nargs == 0:
            if not isinstance(value, bool):
                raise UseError(f"{path}: '{name}' must be true or false, found {value!r}")
            return value
        many = isinstance(value, list)
        if many != (action.nargs in ("+", "*") or isinstance(action.nargs, int)):
            raise UseError(f"{path}: '{name}' takes {'one value' if many else 'a list'}, found {value!r}")
        try:
            values = [action.type(str(v)) if action.type else str(v) for v in (value if many else [value])]
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            raise UseError(f"{path}: '{name}' cannot be {value!r}") from None
        for one in values:
            if action.choices is not None and one not in action.choices:
                raise UseError(f"{path}: '{name}' must be one of {', '.join(map(str, action.choices))}, not {one}")
        return values if many else values[0]


# What people type in a checkout for each verb; an installed toolkit has only the one command.
_FILES = {
    "search": "python search/run.py --search",
    "prune": "python prune/prune.py",
    "retrain": "python retrain/train.py",
    "eval": "python retrain/eval.py",
    "specialize": "python retrain/specialize.py",
    "prepare": "python VOC12/prepare.py",
}


def _as_command() -> bool:
    return Path(sys.argv[0]).name in ("sparsemask", "__main__.py")


def spoken(verb: str, rest: str = "") -> str:
    """The command line of a verb as this user types it, for advice."""
    return f"{f'sparsemask {verb}' if _as_command() else _FILES[verb]} {rest}".strip()


def presets() -> dict[str, Path]:
    """The configuration files that come with the toolkit, by name."""
    folder = resources.files("sparsemask.configs")
    return {Path(str(f)).stem: Path(str(f)) for f in folder.iterdir() if str(f).endswith(".yaml")}


def find_config(path: str | Path, space: str | None = None) -> Path:
    """A configuration file by path, or a preset by name: `short` is `smsr_short` for space smsr, if there is one."""
    known = presets()
    if (name := preset_name(path, space)) is not None:
        return known[name]
    if not Path(path).is_file():
        own = [name.removeprefix(f"{space}_") for name in known if name.startswith(f"{space}_")]
        raise UseError(f"configuration not found: {path} (a file, or one of: {', '.join(sorted(own or known))})")
    return Path(path)


def preset_name(path: str | Path, space: str | None = None) -> str | None:
    """The preset that `path` names for a space; None where it names none: another space's is none of this one's."""
    known = presets()
    if f"{space}_{path}" in known:
        return f"{space}_{path}"
    of_others = any(name.startswith(f"{space}_") for name in known)
    return str(path) if str(path) in known and (not of_others or str(path).startswith(f"{space}_")) else None


def plain(options: argparse.Namespace | dict) -> dict:
    """The options as plain values (numbers, strings, lists), fit for YAML and for a checkpoint."""
    values = dict(options) if isinstance(options, dict) else vars(options)
    return {
        name: [str(v) if isinstance(v, Path) else v for v in value]
        if isinstance(value, (list, tuple))
        else (str(value) if isinstance(value, Path) else value)
        for name, value in values.items()
        if name not in TRANSIENT
    }


def write_config(path: str | Path, options: argparse.Namespace | dict) -> None:
    """Write a run's configuration: ``--config`` on this file starts the same run again."""
    write_text(path, yaml.safe_dump(plain(options), sort_keys=True, allow_unicode=True))


def positive(text: str) -> int:
    """argparse type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def natural(text: str) -> int:
    """argparse type: an integer of at least 0."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be at least 0, not {value}")
    return value


def byte(text: str) -> int:
    """argparse type: an integer of 0 to 255."""
    value = int(text)
    if not 0 <= value <= 255:
        raise argparse.ArgumentTypeError(f"must be 0 to 255, not {value}")
    return value


def factor(text: str) -> float:
    """argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a finite number above 0, not {text}")
    return value


def fraction(text: str) -> float:
    """argparse type: a number in [0, 1)."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"must be in [0, 1), not {text}")
    return value


def rate(text: str) -> float:
    """argparse type: a finite number of at least 0."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a finite number of at least 0, not {text}")
    return value
