"""One configuration: typed, frozen sections, from which the command line's flags and a run's config.yaml are made.

A section is a frozen dataclass whose fields are declared by :func:`flag`. It stands beside what it configures: a
family's beside the family, a task's beside the task. A command's parser is given its sections by role
(:meth:`sparsemask.options.Parser.add_section`) and resolves a command line to a :class:`RunConfig`. Nothing changes a
configuration: what is settled later (weights that were found, a mask's copy) makes a new one, by
:meth:`RunConfig.replace`. Which flags the user gave is told beside the configuration, never in it.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Self

from sparsemask.errors import UseError, meant

if TYPE_CHECKING:
    from sparsemask.flags import DeviceSection, RunSection, TrainingSection

Kind = Callable[[str], Any]
"""Reads a value from a word; raises ValueError, TypeError or argparse.ArgumentTypeError for a wrong one."""


@dataclass(frozen=True, kw_only=True)
class Flag:
    """What the command line needs to know of a field.

    Attributes:
        help: the text of --help; a function where it depends on what is registered; None hides the flag.
        kind: reads one value from a word; None: text.
        choices: the only values allowed.
        nargs: as argparse has it; 0: a switch, present or absent.
        metavar: what stands for the value in --help.
        const: the value of a flag that stands without one (nargs "?").
        group: title of the group in --help, where that is not the section's.
        transient: it steers one call and is not written to a run's configuration.
    """

    help: str | Callable[[], str] | None
    kind: Kind | None = None
    choices: Sequence[Any] | None = None
    nargs: str | int | None = None
    metavar: str | None = None
    const: Any = None
    group: str | None = None
    transient: bool = False

    def text(self) -> str:
        """The text of --help."""
        if self.help is None:
            return argparse.SUPPRESS
        return self.help() if callable(self.help) else self.help


def flag(default: Any = None, kind: Kind | None = None, *, help: str | Callable[[], str] | None, **more: Any) -> Any:
    """A field of a :class:`Section` that is a flag of the command line.

    Args:
        default: False makes a switch; a list is the default of a flag that takes several values.
        kind: see :class:`Flag`, as for `help` and all further arguments.
    """
    if default is False:
        more["nargs"] = 0
    if isinstance(default, list):
        default = tuple(default)
    return dataclasses.field(default=default, metadata={"flag": Flag(help=help, kind=kind, **more)})


def takes_many(nargs: str | int | None) -> bool:
    """Whether a flag with these `nargs` has a list as its value."""
    return nargs in ("+", "*") or (isinstance(nargs, int) and nargs > 0)


def checked_value(
    name: str,
    value: Any,
    *,
    kind: Kind | None,
    nargs: str | int | None,
    choices: Sequence[Any] | None,
    source: object,
) -> Any:
    """A flag's value as the command line would have read it.

    Args:
        name: of the flag.
        value: None, which every flag may be, a switch's bool, one value, or a list.
        source: names in messages what the value comes from.

    Returns:
        The value; one that is equal to what the command line would have read stays as it is.

    Raises:
        UseError: the command line would not have taken it. The message repeats the value.
    """
    if value is None:
        return None
    if nargs == 0:
        if not isinstance(value, bool):
            raise UseError(f"{source}: '{name}' must be true or false, found {value!r}")
        return value
    many = isinstance(value, list | tuple)
    if many != takes_many(nargs):
        raise UseError(f"{source}: '{name}' takes {'one value' if many else 'a list'}, found {value!r}")
    if any(isinstance(part, list | tuple | dict) for part in (value if many else [value])):
        raise UseError(f"{source}: '{name}' cannot be {value!r:.80}")
    try:
        values = [kind(str(part)) if kind else str(part) for part in (value if many else [value])]
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        raise UseError(f"{source}: '{name}' cannot be {value!r}") from None
    for part in values:
        if choices is not None and part not in choices:
            near = meant(part, choices).strip()
            raise UseError(
                f"{source}: '{name}' must be one of {', '.join(map(str, choices))}, not {part}"
                + (f"; {near}" if near else "")
            )
    return values if many else values[0]


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """Flags that belong together, with their values. Subclasses are frozen, keyword-only dataclasses of flags.

    Every value is checked by the rules of the command line, whoever makes the section.

    Raises:
        UseError: a value that the flag cannot have.
    """

    title: ClassVar[str | None] = None
    """Of the group in --help; None: the parser's own options."""
    inherited_last: ClassVar[bool] = False
    """Whether the flags of the class derived from follow its own in --help."""
    alternatives: ClassVar[tuple[tuple[str, ...], ...]] = ()
    """Flags of which a file or command line that names one does not mean a lower layer's others."""

    def __post_init__(self) -> None:
        for name, rule in self.flags().items():
            value = self.value(name)
            read = checked_value(
                name,
                value,
                kind=rule.kind,
                nargs=rule.nargs,
                choices=rule.choices,
                source=f"{type(self).__name__}.{name}",
            )
            if isinstance(value, list | tuple):
                value, read = tuple(value), tuple(read)
            # A whole number where the kind is float stays one, so that files keep their bytes.
            object.__setattr__(self, name, value if value == read else read)
        self.check()

    def check(self) -> None:  # noqa: B027 - most sections have no rule that spans several flags
        """Raise a UseError where values do not go together. Default: nothing."""

    @classmethod
    def flags(cls) -> Mapping[str, Flag]:
        """The flags by name, in the order of --help."""
        return _flags(cls)

    @classmethod
    def add_to(
        cls,
        parser: argparse.ArgumentParser,
        *,
        defaults: Mapping[str, Any] | None = None,
        helps: Mapping[str, str] | None = None,
        only: Sequence[str] | None = None,
    ) -> None:
        """Add the section's flags to a parser, in a group of its title.

        Args:
            parser: a group of the title that it has already is gone on with.
            defaults: by name, where they are not the fields' own.
            helps: texts of --help, likewise.
            only: these flags alone; None: all.
        """
        values = {field.name: field.default for field in dataclasses.fields(cls)} | dict(defaults or {})
        helps = helps or {}
        for name, rule in cls.flags().items():
            if only is not None and name not in only:
                continue
            words: dict[str, Any] = {"default": values[name], "help": helps.get(name, rule.text())}
            if rule.nargs == 0:
                words["action"] = "store_true"
            else:
                if isinstance(words["default"], tuple):
                    words["default"] = list(words["default"])
                given = {"type": rule.kind, "nargs": rule.nargs, "choices": rule.choices, "metavar": rule.metavar}
                words |= {key: value for key, value in {**given, "const": rule.const}.items() if value is not None}
            titled_group(parser, rule.group or cls.title).add_argument(f"--{name}", **words)

    def value(self, name: str) -> Any:
        """The value of one flag; a tuple where it takes several."""
        return getattr(self, name)  # names of fields are data here: they come from files and command lines

    def values(self) -> dict[str, Any]:
        """The flags' values by name; lists where a flag takes several."""
        found = {name: self.value(name) for name in self.flags()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    def replace(self, **flags: Any) -> Self:
        """A new section with other values."""
        return dataclasses.replace(self, **flags)


_FLAGS: dict[type[Section], Mapping[str, Flag]] = {}


def _flags(section: type[Section]) -> Mapping[str, Flag]:
    if section not in _FLAGS:
        found = {field.name: field.metadata["flag"] for field in dataclasses.fields(section)}
        if section.inherited_last:
            bases = [base for base in section.__mro__[1:] if issubclass(base, Section)]
            inherited = {field.name for base in bases for field in dataclasses.fields(base)}
            own = [name for name in found if name not in inherited]
            found = {name: found[name] for name in (*own, *(name for name in found if name in inherited))}
        _FLAGS[section] = MappingProxyType(found)
    return _FLAGS[section]


def titled_group(parser: argparse.ArgumentParser, title: str | None) -> argparse._ActionsContainer:
    """The group of a title in a parser, made where there is none; the parser itself without a title."""
    if title is None:
        return parser
    for group in parser._action_groups:
        if group.title == title:
            return group
    return parser.add_argument_group(title)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig(Mapping[str, Any]):
    """The whole configuration of a command, in sections; also a mapping of the flags' values by name.

    Attributes:
        run: where the run lives and how it repeats; of other commands, what they work on.
        data: which data; the task's section.
        network: which network; the space's section.
        device: where it is computed.
        training: the optimisation.
        evaluation: how an evaluation or an export is done.
        family: what the family of methods has of its own.
        views: how a space's networks are run on large inputs, where it has a choice.

    A role that a command has no section for is None.
    """

    run: RunSection | Any = None
    data: Any = None
    network: Any = None
    device: DeviceSection | Any = None
    training: TrainingSection | Any = None
    evaluation: Any = None
    family: Any = None
    views: Any = None

    @classmethod
    def from_flat(cls, sections: Mapping[str, type[Section]], values: Mapping[str, Any]) -> RunConfig:
        """Put flags into the sections that have them.

        Args:
            sections: classes by role.
            values: flags by name; those that are missing have the fields' defaults.

        Raises:
            KeyError: a flag that no section has.
            UseError: a value that its flag cannot have.
        """
        left = dict(values)
        made = {
            role: section(**{name: left.pop(name) for name in section.flags() if name in left})
            for role, section in sections.items()
        }
        if left:
            raise KeyError(f"no section has {', '.join(sorted(left))}")
        return cls(**made)

    def sections(self) -> dict[str, Section]:
        """The sections there are, by role."""
        roles = {
            "run": self.run,
            "data": self.data,
            "network": self.network,
            "device": self.device,
            "training": self.training,
            "evaluation": self.evaluation,
            "family": self.family,
            "views": self.views,
        }
        return {role: section for role, section in roles.items() if section is not None}

    def __len__(self) -> int:
        return sum(len(section.flags()) for section in self.sections().values())

    def __iter__(self) -> Iterator[str]:
        """Names of all flags."""
        return (name for section in self.sections().values() for name in section.flags())

    def __getitem__(self, name: str) -> Any:
        """The value of a flag by its name; KeyError where no section has it."""
        for section in self.sections().values():
            if name in section.flags():
                value = section.value(name)
                return list(value) if isinstance(value, tuple) else value
        raise KeyError(name)

    def flat(self) -> dict[str, Any]:
        """The flags by name as config.yaml and checkpoints hold them, without those that steer one call only."""
        return {
            name: value
            for section in self.sections().values()
            for name, value in section.values().items()
            if not section.flags()[name].transient
        }

    def replace(self, **flags: Any) -> RunConfig:
        """A new configuration with other values, each put into the section that has it.

        Raises:
            KeyError: a flag that no section has.
            UseError: a value that its flag cannot have.
        """
        left, changed = dict(flags), {}
        for role, section in self.sections().items():
            own = {name: left.pop(name) for name in section.flags() if name in left}
            if own:
                changed[role] = section.replace(**own)
        if left:
            raise KeyError(f"no section has {', '.join(sorted(left))}")
        return dataclasses.replace(self, **changed)
