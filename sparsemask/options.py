"""Command lines and configuration files: every flag can come from YAML, and a run's own file starts it again.

Precedence, lowest first: a flag's default, the preset chosen for the data at hand, ``--config``, the command line.
A preset or configuration file is a flat mapping of flag names; the sections ``search:`` and ``retrain:`` hold what
holds for one verb only.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from sparsemask.command_lines import as_command, as_typed
from sparsemask.config import RunConfig, Section, checked_value
from sparsemask.errors import UseError, meant
from sparsemask.files import write_text

T = TypeVar("T")
N = TypeVar("N", int, float)

SECTIONS = ("search", "prune", "retrain", "eval", "specialize", "study")
# Flags that steer one call and do not belong to the run: never written to its configuration.
TRANSIENT = {"config", "resume", "help", "trust", "dry_run"}
# Only the command line says these; errors.command acts on --trust.
_NEVER_IN_FILES = {"help", "trust"}


# The flags that --help shows of commands with many; --help-all shows all.
COMMON = frozenset(
    "config name exp_path resume dry_run run checkpoint out task sample voc_root data_root im_path gt_path "
    "training_list eval_list n_class class_names ignore_index label_map crop_size hr_path dir_data data_test scale "
    "train_scans test_area space backbone_name pretrained_model arch connectivity gpu batch_size max_epoch max_iter "
    "lr patience method sparse budget_ms budget_macs mask_path inherit ft_model target keep teacher flips "
    "eval_scales fixed trials workers".split()
)
_MANY = 24  # flags from which --help is short


_asked: list[list[Parser]] = []  # who wants to know which parsers are asked for all of their flags


@contextlib.contextmanager
def asked() -> Iterator[list[Parser]]:
    """Inside, parsers that meet --help-all are put into the list."""
    parsers: list[Parser] = []
    _asked.append(parsers)
    try:
        yield parsers
    finally:
        _asked.pop()


class _HelpAll(argparse.Action):
    """--help-all: every flag."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        assert isinstance(parser, Parser)
        for parsers in _asked:
            parsers.append(parser)
        print(parser.full_help(), end="")
        parser.exit()


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are errors of use: one line, exit status 2.

    Where it has many flags --help shows those of :data:`COMMON`, and --help-all all.
    """

    def __init__(self, verb: str, **kwargs: Any):
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        script = kwargs.get("prog", "")
        if not script or script.endswith(".py"):  # as this user types it
            kwargs["prog"] = f"sparsemask {verb}" if as_command() or not script else f"python {script}"
        if kwargs.get("description"):
            kwargs["description"] = as_typed(kwargs["description"])
        super().__init__(allow_abbrev=False, **kwargs)
        self.verb = verb
        self.sections: dict[str, type[Section]] = {}
        words: dict[str, Any] = {"nargs": 0, "dest": "help", "default": argparse.SUPPRESS}
        self.add_argument("--help-all", action=_HelpAll, help="every flag", **words)
        self.add_argument(
            "--trust",
            action="append",
            metavar="NAME",
            help="let files (checkpoints, runs, recipes) name this code of yours: package.module:name; repeatable",
        )

    def add_section(
        self,
        role: str,
        section: type[Section],
        *,
        defaults: Mapping[str, object] | None = None,
        helps: Mapping[str, str] | None = None,
        only: Sequence[str] | None = None,
    ) -> None:
        """Add the flags of a section.

        Args:
            role: what it is for, an attribute of :class:`sparsemask.config.RunConfig`.
            section: its class.
            defaults: by flag, where this command's are not the section's.
            helps: texts of --help, likewise.
            only: these of its flags alone; the others are added by another call.
        """
        self.sections[role] = section
        section.add_to(self, defaults=defaults, helps=helps, only=only)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse has it; flags may be written with dashes for underscores."""
        words = list(sys.argv[1:] if args is None else args)
        return super().parse_known_args([self._underscored(word) for word in words], namespace)

    def _underscored(self, word: str) -> str:
        """A flag as it is known: --im-path is --im_path."""
        head, equals, value = word.partition("=")
        if not head.startswith("--") or head in self._option_string_actions:
            return word
        known = f"--{head[2:].replace('-', '_')}"
        return known + equals + value if known in self._option_string_actions else word

    def format_help(self) -> str:
        """The text of --help: of commands with many flags the common ones, under their titles."""
        rare = [a for a in self.visible() if a.dest not in COMMON and a.dest != "help"]
        if len(self.visible()) < _MANY or not rare:
            return self.full_help()
        texts = {action: action.help for action in rare}
        try:
            for action in rare:
                action.help = argparse.SUPPRESS
            text = self._compact(super().format_help())
        finally:
            for action, help_text in texts.items():
                action.help = help_text
        return f"{text}\n{len(rare)} more flags, for whoever needs them: {self.prog} --help-all\n"

    def full_help(self) -> str:
        """The text of --help-all."""
        text = super().format_help()
        return text if len(self.visible()) < _MANY else self._compact(text)

    def visible(self) -> list[argparse.Action]:
        """The flags that have a text."""
        return [a for a in self._actions if a.option_strings and a.help is not argparse.SUPPRESS]

    def _compact(self, text: str) -> str:
        """A help text whose first paragraph does not list all flags again."""
        positional = "".join(f" {a.metavar or a.dest}" for a in self._actions if not a.option_strings)
        _, _, rest = text.partition("\n\n")
        return f"usage: {self.prog}{positional} [flags]\n\n{rest}"

    def error(self, message: str) -> NoReturn:
        """Refuse a command line in one line, with a hint where a word is near a known one."""
        if (found := re.fullmatch(r"(argument \S+): invalid (\w+) value: (.*)", message)) and found[2] in _KINDS:
            message = f"{found[1]}: expected {_KINDS[found[2]]}, not {found[3]}"
        raise UseError(f"{message}{self._hint(message)} (see {self.prog} --help)")

    def _hint(self, message: str) -> str:
        """Of a message of argparse: the flags or the value that were perhaps meant."""
        near = ""
        if found := re.fullmatch(r"unrecognized arguments: (.*)", message):
            known = [name[2:] for action in self._actions for name in action.option_strings if name.startswith("--")]
            wrong = [word[2:].partition("=")[0] for word in found[1].split() if word.startswith("--")]
            near = "".join(meant(word, known).replace(" '", " '--") for word in wrong)
        elif found := re.match(r"argument (\S+): invalid choice: '(.*?)' \(choose", message):
            named = found[1].split("/")
            choices = next(
                (
                    action.choices
                    for action in self._actions
                    if {*action.option_strings, action.metavar, action.dest} & set(named)
                ),
                None,
            )
            near = meant(found[2], choices or ())
        return _after(near)

    def actions(self) -> dict[str, argparse.Action]:
        """Every flag's action by its name in a configuration file."""
        return {a.dest: a for a in self._actions if a.dest not in _NEVER_IN_FILES and not a.dest.startswith("_")}

    def alternatives(self) -> list[tuple[str, ...]]:
        """Flags of which one excludes the others, see :attr:`sparsemask.config.Section.alternatives`."""
        return [group for section in self.sections.values() for group in section.alternatives]

    def group(self, title: str) -> list[str]:
        """Names of the flags in the group of a title."""
        return [one.dest for group in self._action_groups if group.title == title for one in group._group_actions]

    def given(self, argv: Sequence[str] | None) -> dict[str, Any]:
        """Only the flags that stand on the command line, parsed."""
        kept = {action: (action.default, action.required) for action in self._actions}
        try:
            for action in self._actions:
                action.default, action.required = argparse.SUPPRESS, False
            found = vars(self.parse_args(argv))
            return {k: v for k, v in found.items() if not k.startswith("_") and k not in _NEVER_IN_FILES}
        finally:
            for action, (default, required) in kept.items():
                action.default, action.required = default, required

    def resolve(self, *layers: Mapping[str, Any]) -> RunConfig:
        """The configuration of mappings of flags laid over the defaults, the last one on top.

        Raises:
            KeyError: a flag that no section of this parser has.
            UseError: a value that its flag cannot have.
        """
        values = {name: action.default for name, action in self.actions().items()}
        for layer in layers:
            values.update(layer)
        return RunConfig.from_flat(self.sections, values)

    def from_file(self, path: str | Path, foreign: bool = False) -> dict[str, Any]:
        """Flags from a YAML file (or a preset's name), checked like the command line's.

        foreign: pass over flags that this verb does not have instead of refusing them.
        """
        from sparsemask.containers import read_yaml  # with numpy, which a command line alone does not need

        path = find_config(path, self.get_default("space"))
        content = read_yaml(path)
        if content is None:
            content = {}
        if not isinstance(content, dict):
            raise UseError(f"{path}: expected a mapping of flags, found {type(content).__name__}")
        flat = {k: v for k, v in content.items() if k not in SECTIONS}
        section = content.get(self.verb) or {}
        if not isinstance(section, dict):
            raise UseError(f"{path}: section '{self.verb}' must be a mapping of flags")
        return self.checked({**flat, **section}, path, foreign)

    def checked(self, flags: dict[str, Any], what: object, foreign: bool = False) -> dict[str, Any]:
        """Flags by name as the command line would parse them; UseError naming `what` where one is none or ill-typed.

        foreign: as in :meth:`from_file`.
        """
        if foreign:
            flags = {name: value for name, value in flags.items() if name in self.actions()}
        return {name: self._checked(name, value, what) for name, value in flags.items()}

    def _checked(self, name: str, value: Any, path: object) -> Any:
        actions = self.actions()
        if name not in actions:
            near = meant(name, actions)
            raise UseError(f"{path}: unknown flag '{name}'{_after(near)}")
        action = actions[name]
        kind = cast(Callable[[str], Any] | None, action.type)  # no type of ours is registered by name
        choices = None if action.choices is None else list(action.choices)
        return checked_value(name, value, kind=kind, nargs=action.nargs, choices=choices, source=path)


def _after(near: str) -> str:
    """What was perhaps meant, as the end of a message."""
    return f"; {near.strip()}" if near else ""


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
        near = _after(meant(path, own or known))
        raise UseError(f"configuration not found: {path} (a file, or one of: {', '.join(sorted(own or known))}){near}")
    return Path(path)


def preset_name(path: str | Path, space: str | None = None) -> str | None:
    """The preset that `path` names for a space; None where it names none: another space's is none of this one's."""
    known = presets()
    if f"{space}_{path}" in known:
        return f"{space}_{path}"
    of_others = any(name.startswith(f"{space}_") for name in known)
    return str(path) if str(path) in known and (not of_others or str(path).startswith(f"{space}_")) else None


def preset_flags(name: str, verb: str, space: str) -> dict[str, Any]:
    """What a preset has for a verb and a space, as it stands in its file; {} where they have no such preset."""
    if preset_name(name, space) is None:
        return {}
    from sparsemask.containers import read_yaml

    content = cast(dict[str, Any], read_yaml(find_config(name, space)))
    return {**{k: v for k, v in content.items() if k not in SECTIONS}, **(content.get(verb) or {})}


def spelled(flags: dict[str, Any]) -> list[str]:
    """Flags as a command line has them."""
    words = []
    for name, value in flags.items():
        if isinstance(value, bool):
            words += [f"--{name}"] if value else []
        elif value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return words


def plain(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags as plain values (numbers, strings, lists), fit for YAML and for a checkpoint, without transient ones."""
    return {
        name: [str(v) if isinstance(v, Path) else v for v in value]
        if isinstance(value, (list, tuple))
        else (str(value) if isinstance(value, Path) else value)
        for name, value in flags.items()
        if name not in TRANSIENT
    }


def adopted(config: RunConfig, given: Mapping[str, Any], values: Mapping[str, Any], source: object) -> RunConfig:
    """A configuration with flags taken over from a file that decides them, such as a mask's numbers of the network.

    Args:
        config: the configuration so far.
        given: the flags that the user named on the command line.
        values: flags by name, as the file has them.
        source: names the file in the message.

    Raises:
        UseError: the command line says otherwise.
    """
    for name, value in values.items():
        if name in given and given[name] != value:
            raise UseError(f"--{name} {given[name]}: {source} has {value}")
    return config.replace(**values)


def write_config(path: str | Path, config: RunConfig | Mapping[str, Any]) -> None:
    """Write a run's configuration, or flags by name: ``--config`` on this file starts the same run again."""
    import yaml

    flags = config.flat() if isinstance(config, RunConfig) else plain(config)
    write_text(path, yaml.safe_dump(flags, sort_keys=True, allow_unicode=True))


# What argparse calls by the names of the functions below.
_KINDS = dict.fromkeys(("positive", "natural", "byte", "int"), "a whole number") | dict.fromkeys(
    ("factor", "amount", "fraction", "part", "rate", "float"), "a number"
)


def _within(value: N, allowed: bool, what: str) -> N:
    """The value, where it is allowed; `what` says what must be, and what it is."""
    if not allowed:
        raise argparse.ArgumentTypeError(f"must be {what}")
    return value


def positive(text: str) -> int:
    """argparse type: an integer of at least 1."""
    value = int(text)
    return _within(value, value >= 1, f"at least 1, not {value}")


def natural(text: str) -> int:
    """argparse type: an integer of at least 0."""
    value = int(text)
    return _within(value, value >= 0, f"at least 0, not {value}")


def byte(text: str) -> int:
    """argparse type: an integer of 0 to 255."""
    value = int(text)
    return _within(value, 0 <= value <= 255, f"0 to 255, not {value}")


def factor(text: str) -> float:
    """argparse type: a finite number above 0."""
    value = float(text)
    return _within(value, 0 < value < float("inf"), f"a finite number above 0, not {text}")


def amount(text: str) -> float:
    """argparse type: a finite number above 0, with k, M or G for thousands, millions and billions."""
    units = {"k": 1e3, "M": 1e6, "G": 1e9}
    return factor(text.rstrip("kMG")) * units.get(text[-1:], 1.0)


def share_or(kind: Callable[[str], float]) -> Callable[[str], float | str]:
    """argparse type: what `kind` takes, or a share above 0 % and up to 100 % such as 35%, which stays a text."""

    def read(text: str) -> float | str:
        if not text.endswith("%"):
            return kind(text)
        value = factor(text[:-1])
        if value > 100:
            raise argparse.ArgumentTypeError(f"must be at most 100%, not {text}")
        return f"{value:g}%"

    read.__name__ = kind.__name__
    return read


def staged(kind: Callable[[str], T]) -> Callable[[str], T | str]:
    """argparse type: what `kind` takes, or several of it with shares of the run, ``A:0.7,B:0.3``, which stay a text."""

    def read(text: str) -> T | str:
        parts = stages(text, kind)
        return parts[0][1] if len(parts) == 1 and ":" not in text else text.replace(" ", "")

    read.__name__ = kind.__name__
    return read


def stages(text: object, kind: Callable[[str], T]) -> list[tuple[float, T]]:
    """(end, value) of each stage of a flag that :func:`staged` reads; ends are shares of the run, the last one 1.

    Args:
        text: the flag's value; the last stage may go without a share.
        kind: reads a stage's value.

    Raises:
        argparse.ArgumentTypeError: shares that are none, or do not add up to 1.
    """
    parts = [part.strip().rpartition(":") if ":" in part else (part.strip(), "", "") for part in str(text).split(",")]
    ends: list[float] = []
    for number, (_, _, share) in enumerate(parts):
        if not share and number < len(parts) - 1:
            raise argparse.ArgumentTypeError(f"stages are value:share,value:share; '{text}' lacks a share")
        ends.append((ends[-1] if ends else 0.0) + factor(share) if share else 1.0)
    if abs(ends[-1] - 1) > 1e-6 or any(later <= end for end, later in itertools.pairwise([0.0, *ends])):
        raise argparse.ArgumentTypeError(f"the shares of the stages in '{text}' must add up to 1")
    ends[-1] = 1.0
    return [(end, kind(value)) for end, (value, _, _) in zip(ends, parts, strict=True)]


def stage_at(parts: Sequence[tuple[float, T]], share: float) -> T:
    """The value of the stage that a share of the run, in [0, 1], lies in."""
    return next((value for end, value in parts if share < end), parts[-1][1])


def fraction(text: str) -> float:
    """argparse type: a number in [0, 1)."""
    value = float(text)
    return _within(value, 0 <= value < 1, f"in [0, 1), not {text}")


def part(text: str) -> float:
    """argparse type: a number from 0 to 1."""
    value = float(text)
    return _within(value, 0 <= value <= 1, f"from 0 to 1, not {text}")


def rate(text: str) -> float:
    """argparse type: a finite number of at least 0."""
    value = float(text)
    return _within(value, 0 <= value < float("inf"), f"a finite number of at least 0, not {text}")
