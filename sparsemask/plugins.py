"""User code by name: ``package.module:name``, in a file in the working directory or installed.

Files (checkpoints, metadata, configurations, recipes, masks) may name code and may come from untrusted sources. Only
names that the user gave are imported: on the command line (as a flag's value, or by ``--trust NAME``), or in Python by
:func:`trust`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence

from sparsemask.errors import UseError, one_line

GIVEN = "sparsemask.api.given"
"""The module under which files name tasks on pictures that a program holds."""
_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")  # no address of a hub, no path
_trusted: dict[str, Callable | None] = {}  # name -> what it is, None where it is yet to be imported


def is_own(name: object) -> bool:
    """Whether a value is the name of user code, ``package.module:name``."""
    return isinstance(name, str) and _OWN.fullmatch(name) is not None


def trust(name: str, code: Callable | None = None) -> None:
    """Allow files to name this code: networks and tasks that ask for `name` get it from now on.

    Args:
        name: ``package.module:name`` as the file says it.
        code: the class or function; None: it is imported by its name when it is needed.

    Raises:
        UseError: `name` has another form.
    """
    if not is_own(name):
        raise UseError(f"'{name}': not a name of code (package.module:name)")
    _trusted[name] = code


@contextlib.contextmanager
def trusting(arguments: Sequence[object]) -> Iterator[None]:
    """Inside, every name of user code among the arguments of a command line is trusted; other arguments are ignored."""
    before = dict(_trusted)
    values = [argument.partition("=")[2] if argument.startswith("--") else argument for argument in map(str, arguments)]
    for argument in filter(is_own, (word for value in values for word in value.split(","))):
        _trusted.setdefault(argument, None)
    try:
        yield
    finally:
        _trusted.clear()
        _trusted.update(before)


def trusted() -> list[str]:
    """The names that may be imported now."""
    return sorted(_trusted)


def imported(name: str, kind: str) -> Callable:
    """Import ``package.module:name``, if the user gave that name; modules in the working directory are found too.

    Args:
        name: given on the command line, or read from a file.
        kind: of thing that it should be, for messages ("network", "task").

    Raises:
        UseError: the user has not given the name, or it cannot be imported or called.
    """
    if name not in _trusted and name.startswith(f"{GIVEN}:"):
        raise UseError(
            f"{kind} '{name}': the pictures were those of a program and are in no file; go on in Python, by "
            "sparsemask.api with the same train, val and classes, or name files (--task segmentation --im_path ...)"
        )
    if name not in _trusted:
        raise UseError(
            f"{kind} '{name}' is code that a file names and your command line does not; nothing was imported: if you "
            f"trust that code, add --trust {name} (in Python: sparsemask.trust('{name}'))"
        )
    if (code := _trusted[name]) is not None:
        return code
    value = _import(name, kind)
    if not callable(value):
        raise UseError(f"{kind} '{name}': is no callable that builds a {kind}")
    return value


def _import(reference: str, kind: str) -> object:
    module_name, _, name = reference.partition(":")
    working_directory = os.getcwd()
    added = working_directory not in sys.path
    if added:  # a user's file beside which the command was started; after everything else, so that it hides nothing
        sys.path.append(working_directory)
    try:
        value = importlib.import_module(module_name)
        for part in name.split("."):
            value = getattr(value, part)  # a name that the user wrote
    except Exception as error:  # a user's module may fail in any way, a mistake in its syntax included
        location = f", line {error.lineno} of {error.filename}" if isinstance(error, SyntaxError) else ""
        message = one_line(error.msg if isinstance(error, SyntaxError) else error) or type(error).__name__
        raise UseError(
            f"{kind} '{reference}': cannot be imported ({type(error).__name__}: {message}{location})"
        ) from error
    finally:
        if added:
            sys.path.remove(working_directory)
    return value
