"""What users bring themselves, by a word on the command line: ``package.module:name``, their code beside them."""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable

from sparsemask.errors import UseError, one_line

_OWN = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")  # no address of a hub, no path


def is_own(word: str) -> bool:
    """Whether a word names something of the user's."""
    return _OWN.fullmatch(word) is not None


def imported(word: str, kind: str) -> Callable:
    """What ``package.module:name`` is; modules in the working directory are found too.

    Args:
        word: on the command line.
        kind: of thing that it should be, for messages ("network", "task").

    Raises UseError where it cannot be imported or is no callable.
    """
    place, _, name = word.partition(":")
    here = os.getcwd()
    added = here not in sys.path
    if added:  # a user's file beside which the command was started; after everything else, so that it hides nothing
        sys.path.append(here)
    try:
        value = importlib.import_module(place)
        for part in name.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise UseError(f"{kind} '{word}': cannot be imported ({one_line(error)})") from None
    finally:
        if added:
            sys.path.remove(here)
    if not callable(value):
        raise UseError(f"{kind} '{word}': is no callable that builds a {kind}")
    return value
