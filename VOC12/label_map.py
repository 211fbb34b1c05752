"""Label maps: which class each number in label files stands for, where files have numbers of their own.

A map is a text file, an entry a line, or a JSON object (a file that ends in .json):

    # file  class  name               {"7": [0, "road"], "8": [1, "sidewalk"],
    7       0      road                "11": 1, "0": "ignore", "*": "ignore"}
    8       1      sidewalk
    11      1
    0       ignore
    *       ignore

Several numbers may become one class. ``ignore`` (or 255) marks pixels that do not count, ``*`` stands for all numbers
that have no entry; without it such a number in a file is an error. Classes are numbered from 0 without gaps.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from sparsemask.containers import read_json
from sparsemask.errors import UseError
from sparsemask.VOC12.lists import read_numbered
from sparsemask.VOC12.palette import IGNORE, LabelRangeError, apply_ignored

_IGNORED, _OTHERS = "ignore", "*"
_BETWEEN = "; "  # entries of a map in one line
_SHOWN = 5  # numbers that are named in a message
_LONGEST_NAME = 200
_TEXT = re.compile(r"(\d+|\*) +\S")  # how a map that is no file begins

Entry = tuple[str, str, str]  # number in files, class, name; as they are written


@dataclass(frozen=True)
class LabelMap:
    """Classes by the numbers that label files have.

    Attributes:
        classes: class of each number, 255 where it does not count.
        names: of the classes.
        others_ignored: whether numbers without an entry do not count; else they are an error.
    """

    classes: Mapping[int, int]
    names: tuple[str, ...]
    others_ignored: bool = False

    @classmethod
    def read(cls, source: str | os.PathLike[str]) -> LabelMap:
        """The map of a file, or of a text as :meth:`text` gives it.

        Raises:
            UseError: no such file, or an entry that cannot be one.
        """
        if not Path(source).is_file():
            if not _TEXT.match(str(source)):
                raise UseError(f"--label_map {source}: no such file")
            return cls.of_text(str(source))
        if str(source).lower().endswith(".json"):
            return cls._of(_json_entries(source), source)
        lines = read_numbered(source)
        return cls._of(((_entry(line, f"{source}, line {k}"), f"{source}, line {k}") for k, line in lines), source)

    @classmethod
    def of_text(cls, text: str) -> LabelMap:
        """The map that :meth:`text` gave; UseError where it cannot be one."""
        return cls._of((_entry(entry, "--label_map"), "--label_map") for entry in text.split(_BETWEEN.strip()))

    @classmethod
    def _of(cls, entries: Iterable[tuple[Entry, str]], source: object = "--label_map") -> LabelMap:
        classes: dict[int, int] = {}
        names: dict[int, str] = {}
        others = False
        for (number, target, name), where in entries:
            ignored = target in (_IGNORED, str(IGNORE))
            if number == _OTHERS:
                if not ignored:
                    raise UseError(f"{where}: {_OTHERS} can be '{_IGNORED}' alone, not {target}")
                others = True
                continue
            value = _number(number, IGNORE, f"{where}: '{number}' is no number in label files, 0 to {IGNORE}")
            expected = f"{where}: '{target}' is no class, 0 to {IGNORE - 1} or '{_IGNORED}'"
            k = IGNORE if ignored else _number(target, IGNORE - 1, expected)
            if classes.setdefault(value, k) != k:
                raise UseError(f"{where}: {value} has two classes, {classes[value]} and {target}")
            if not ignored and name and names.setdefault(k, name) != name:
                raise UseError(f"{where}: class {k} has two names, '{names[k]}' and '{name}'")
        count = 1 + max((k for k in classes.values() if k != IGNORE), default=-1)
        if not count:
            raise UseError(f"{source}: no number has a class")
        if gaps := sorted(set(range(count)) - set(classes.values())):
            raise UseError(f"{source}: classes go up to {count - 1}, but no number has class {gaps[0]}")
        listed = tuple(names.get(k, f"class {k}") for k in range(count))
        return cls(classes, listed, others)

    def text(self) -> str:
        """The map in one line, as :meth:`read` takes it."""
        words, named = [], set()
        for number, k in self.classes.items():
            if k == IGNORE:
                words.append(f"{number} {_IGNORED}")
                continue
            words.append(f"{number} {k}" + ("" if k in named else f" {self.names[k]}"))
            named.add(k)
        return _BETWEEN.join([*words, *([f"{_OTHERS} {_IGNORED}"] if self.others_ignored else [])])

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """The number that stands for each class in files; of several the first in the map."""
        first: dict[int, int] = {}
        for number, k in self.classes.items():
            first.setdefault(k, number)
        return tuple(first[k] for k in range(len(self.names)))

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """Classes (256,) uint8 by number, and which numbers have one."""
        table, known = np.full(256, IGNORE, np.uint8), np.full(256, self.others_ignored)
        for number, k in self.classes.items():
            table[number], known[number] = k, True
        return table, known

    def check_ignored(self, ignored: int) -> None:
        """Raise a UseError where the number that --ignore_index names is a class here."""
        k = self.classes.get(ignored, IGNORE)
        if k != IGNORE:
            raise UseError(f"--ignore_index {ignored}: --label_map makes {ignored} class {k} ({self.names[k]})")

    def apply(self, label: np.ndarray, ignored: int, name: object) -> np.ndarray:
        """The classes of a label as its file has it.

        Args:
            label: uint8 of any shape.
            ignored: the number that --ignore_index names.
            name: what the file is called in messages.

        Returns:
            uint8, 255 where a pixel does not count.

        Raises:
            LabelRangeError: numbers without an entry.
        """
        table, known = self._table
        if not (known[ignored] or known.all()):
            known = known.copy()
            known[ignored] = True
        if not known[label].all():
            strange = [int(value) for value in np.unique(label) if not known[value]]
            listed = ", ".join(map(str, strange[:_SHOWN])) + (", ..." if len(strange) > _SHOWN else "")
            raise LabelRangeError(
                f"{name}: label {listed} not in --label_map ({ignored} is ignored): add a line "
                f"'{strange[0]} CLASS', or '{_OTHERS} {_IGNORED}' for all others"
            )
        return table[label]


def class_numbers(
    label: np.ndarray, n_class: int, ignored: int, label_map: LabelMap | None, name: object
) -> np.ndarray:
    """The classes of a label as its file has it, uint8, 255 where a pixel does not count.

    Without a map numbers beyond the classes stay, for :func:`sparsemask.VOC12.palette.beyond_classes` to find.

    Args:
        label: uint8 of any shape.
        n_class: number of classes.
        ignored: the number that --ignore_index names.
        label_map: that of --label_map.
        name: what the file is called in messages.

    Raises:
        LabelRangeError: numbers that have no class.
    """
    if label_map is not None:
        return label_map.apply(label, ignored, name)
    return apply_ignored(label, ignored, n_class, name)


def _entry(line: str, where: str) -> Entry:
    words = line.replace("\t", " ").split(None, 2)
    if len(words) < 2:
        raise UseError(f"{where}: '{line.strip():.60}' is no entry, expected: NUMBER CLASS [NAME]")
    return words[0], words[1], _name(words[2] if len(words) > 2 else "", where)


def _json_entries(path: str | os.PathLike[str]) -> list[tuple[Entry, str]]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise UseError(f"{path}: expected an object, {{number: class}}, found {type(content).__name__}")
    entries = []
    for number, value in content.items():
        parts = value if isinstance(value, list) else [value]
        simple = all(isinstance(part, str | int) and not isinstance(part, bool) for part in parts)
        if not 1 <= len(parts) <= 2 or not simple:
            raise UseError(
                f'{path}, entry "{number}": {value!r:.60} is no class, expected K, [K, "NAME"] or "{_IGNORED}"'
            )
        where = f'{path}, entry "{number}"'
        name = _name(str(parts[1]) if len(parts) > 1 else "", where)
        entries.append(((str(number).strip(), str(parts[0]).strip(), name), where))
    return entries


def _name(text: str, where: str) -> str:
    name = text.strip().strip("\"'")
    if ";" in name or not name.isprintable() or len(name) > _LONGEST_NAME:
        raise UseError(f"{where}: a name has at most {_LONGEST_NAME} letters in one line and no ';': {name!r:.60}")
    return name


def _number(text: str, largest: int, message: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 3) or int(text) > largest:
        raise UseError(message)
    return int(text)
