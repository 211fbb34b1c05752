"""Files that a command line names (files, folders, patterns, standard input), and doing something with each of many."""

from __future__ import annotations

import glob
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TextIO, TypeVar

from sparsemask.errors import UseError, say

STREAM = "-"
"""Standard input as a file to read, and standard output as the file to write."""
Job = TypeVar("Job")


class Kind(NamedTuple):
    """What files a command takes.

    Attributes:
        one: what one is called.
        many: what several are called.
        suits: whether a path in a folder, or one that a pattern finds, is such a file.
    """

    one: str
    many: str
    suits: Callable[[Path], bool]


def _is_picture(path: Path) -> bool:
    from sparsemask.VOC12.images import is_picture  # with numpy, which --help does not need

    return is_picture(path)


PICTURES = Kind("picture", "pictures", _is_picture)


def expand(
    words: Sequence[str],
    kind: Kind = PICTURES,
    *,
    recursive: bool = False,
    without: Path | None = None,
    stream: bool = False,
) -> list[str]:
    """The files that words name: files as they stand, those of folders and of patterns sorted by name.

    Args:
        words: files, folders, and patterns such as ``frames/*.png`` or ``photos/**/*.jpg``.
        kind: of the files in folders and of patterns; files that are named themselves may be of any.
        recursive: take files in the folders of folders too.
        without: a folder that is written to: files below it are left out where it lies inside of a folder of `words`.
        stream: whether - stands for standard input.

    Returns:
        Paths, each once. Of several, one that is named itself need not exist: reading it says so.

    Raises:
        UseError: a folder or a pattern without such files, a word that is none of all these, standard input twice.
    """
    found: list[str] = []
    for word in words:
        path = Path(word)
        if stream and word == STREAM:
            found.append(word)
        elif path.is_dir():
            inside = path.rglob("*") if recursive else path.iterdir()
            files = sorted(p for p in inside if kind.suits(p) and p.is_file() and not _below(p, without, path))
            if not files:
                advice = "" if recursive else " (--recursive looks deeper)"
                raise UseError(f"{path}: no {kind.many} in this folder{advice}")
            found += map(str, files)
        elif path.exists():
            found.append(word)
        elif glob.has_magic(word):
            matches = [p for p in sorted(glob.glob(word, recursive=True)) if kind.suits(Path(p)) and Path(p).is_file()]
            if not matches:
                raise UseError(f"{word}: no {kind.many} match this pattern")
            found += matches
        elif len(words) > 1 and kind.suits(path):
            found.append(word)
        else:
            raise UseError(f"{word}: no such {kind.one} or folder")
    if found.count(STREAM) > 1:
        raise UseError(f"standard input ({STREAM}) holds one {kind.one}: name it once")
    return list(dict.fromkeys(found))


def _below(path: Path, out: Path | None, folder: Path) -> bool:
    """Whether a file of a folder lies in the folder that is written to, inside of it."""
    if out is None:
        return False
    inside = out.resolve()
    return inside != folder.resolve() and path.resolve().is_relative_to(inside)


def output_folder(name: str | Path) -> Path:
    """The folder that --out-dir names, which need not exist; UseError where it is a file."""
    folder = Path(name)
    if folder.exists() and not folder.is_dir():
        raise UseError(f"--out-dir {folder}: is a file, expected a folder")
    return folder


def each(
    jobs: Sequence[Job],
    do: Callable[[Job], list[str]],
    source: Callable[[Job], str],
    done: str,
    where: object,
    stream: TextIO | None = None,
) -> int:
    """Do something with each of many files; a bad one is named and the rest are done.

    Args:
        jobs: what is to be done.
        do: does it and returns lines about it; its UseErrors are said and counted.
        source: the file's name in messages.
        done: what was done with what, as "pictures enlarged".
        where: the folder that was written to, for the summary; None: there is one job, whose lines alone are said and
            whose error ends the command.
        stream: where lines go; None: standard output.

    Returns:
        The command's exit status: 1 where one or more failed.
    """
    if where is None:
        for line in do(jobs[0]):
            say(line, stream)
        return 0
    from tqdm import tqdm

    failed, began = 0, time.perf_counter()
    # A bar in a terminal, whose lines then stand above it; lines alone elsewhere.
    with tqdm(total=len(jobs), unit="file", disable=None, leave=False, dynamic_ncols=True) as bar:

        def tell(line: str, to: TextIO | None) -> None:
            with bar.external_write_mode(to or sys.stdout):
                say(line, to)

        for number, job in enumerate(jobs, 1):
            try:
                said = do(job)
            except UseError as error:
                failed += 1
                text = str(error)
                tell(f"error: {text if source(job) in text else f'{source(job)}: {text}'}", sys.stderr)
            else:
                left = (time.perf_counter() - began) / number * (len(jobs) - number)
                remaining = f", {left:.0f} s left" if number < len(jobs) else ""
                for line in (f"[{number}/{len(jobs)}{remaining}] {said[0]}", *said[1:]):
                    tell(line, stream)
            bar.update()
    spent = time.perf_counter() - began
    summary = f"{len(jobs) - failed} of {len(jobs)} {done} in {spent:.1f} s"
    say(f"{summary}, {failed} failed (named above)" if failed else f"{summary}: {where}", stream)
    return 1 if failed else 0
