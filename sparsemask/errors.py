"""Errors of use: one clear line, exit status 2, no traceback.

Internal failures keep their traceback. What a user can fix (a missing file, a mask of another backbone, a full disk) is
raised as :class:`UseError` and printed as one line on standard error.
"""

from __future__ import annotations

import contextlib
import difflib
import errno
import functools
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from types import FrameType
from typing import TextIO

# What the operating system refuses because of a path or a disk, not because of a mistake of ours.
_SYSTEM = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than this system allows",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "not permitted",
    errno.ENOENT: "no such file or folder",
    errno.ENOTDIR: "a part of the path is not a folder",
    errno.EISDIR: "it is a folder, not a file",
    errno.EEXIST: "it exists already",
    errno.ENAMETOOLONG: "the name is too long",
    errno.ELOOP: "its links go round in a circle",
    errno.ENOTEMPTY: "the folder is not empty",
    errno.EMFILE: "too many files are open",
}


class UseError(Exception):
    """An error that the user can fix: its message says what is wrong, where, and what to do."""


class Terminated(SystemExit):
    """Raised in a command's main thread by SIGTERM, so that unfinished files are removed."""

    code: int

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


def one_line(text: object) -> str:
    """Fold any text into one line."""
    return " ".join(str(text).split())


def describe(error: OSError) -> str | None:
    """One line for an operating-system error that a user can fix, None for any other."""
    reason = _SYSTEM.get(error.errno or 0)
    if reason is None:
        return None
    path = error.filename2 or error.filename
    return f"{path}: {reason}" if path else reason


def lost_worker(error: RuntimeError) -> str | None:
    """One line for what torch raises when a loader process died, anywhere in the main thread; None for any other."""
    message = one_line(error)
    if not message.startswith("DataLoader worker (pid"):
        return None
    return f"a loader process was lost (out of memory?): {message.rstrip('. ')}; a lower --n_worker needs less"


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Inside, SIGTERM raises :class:`Terminated`, unless it is handled or ignored already."""
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    if ours:
        signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """Wrap a command's ``main(argv)``: errors of use exit 2 in one line, Ctrl-C 130, SIGTERM 143, a closed pipe 0.

    Names of code on this command line may be imported while it runs (:mod:`sparsemask.plugins`). What trains prints by
    :func:`say`, which a closed pipe does not stop.
    """

    @functools.wraps(main)
    def wrapped(argv: list[str] | None = None) -> int:
        from sparsemask.plugins import trusting  # which raises what is defined here

        message: str | None
        try:
            with trusting(sys.argv[1:] if argv is None else argv), _terminable():
                return main(argv) or 0
        except UseError as error:
            message = one_line(error)
        except KeyboardInterrupt as stop:
            print(f"\nstopped: {one_line(stop) or 'nothing was lost'}", file=sys.stderr)
            return 130
        except Terminated as stop:
            print("\nstopped by SIGTERM", file=sys.stderr)
            return stop.code
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        except RuntimeError as error:
            message = lost_worker(error)
            if message is None:
                raise
        except OSError as error:
            message = describe(error)
            if message is None:
                raise
        print(f"error: {message}", file=sys.stderr)
        return 2

    return wrapped


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line; a closed pipe is ignored, so that work goes on."""
    stream = stream or sys.stdout
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def choose(name: str, known: Collection[str], what: str) -> None:
    """Check a name against the known ones.

    Args:
        name: as the user gave it.
        known: the accepted names.
        what: kind of the name, for the message ("backend").

    Raises:
        UseError: the name is unknown; the message lists the known names and the most similar one.
    """
    if name not in known:
        raise UseError(f"unknown {what} '{name}'; {meant(name, known)}known: {', '.join(sorted(map(str, known)))}")


def meant(name: object, known: Iterable[object]) -> str:
    """ "did you mean 'x'? " with the known name that is most like `name`; empty where none is."""
    names = {str(name_known).lower(): str(name_known) for name_known in known}
    near = difflib.get_close_matches(str(name).lower(), names, 1)
    return f"did you mean '{names[near[0]]}'? " if near else ""
