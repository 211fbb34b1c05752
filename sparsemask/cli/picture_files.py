"""Pictures that are made of pictures: names of the files, reading and writing, standard input and output too."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sparsemask.cli.inputs import STREAM
from sparsemask.errors import UseError
from sparsemask.files import distinct_names
from sparsemask.pictures.files import WRITTEN, Picture, decode_picture, encode_picture, read_picture, write_picture

STDIN_NAME = "stdin"


class Job(NamedTuple):
    """A picture to read, and the file to write."""

    source: str
    out: str


def jobs(sources: Sequence[str], folder: Path, form: str | None) -> list[Job]:
    """What to write into a folder: a file for each picture, of its name.

    Args:
        sources: pictures, as :func:`sparsemask.cli.inputs.expand` gives them.
        folder: where to write; it need not exist.
        form: suffix without its dot; None: that of the picture where it can be written, else png.

    Raises:
        UseError: a file would replace the picture that it is made of, or two would have one name.
    """
    names = distinct_names([STDIN_NAME if source == STREAM else source for source in sources])
    made = []
    for source, name in zip(sources, names, strict=True):
        own = Path(source).suffix.lower()
        suffix = f".{form}" if form else own if own in WRITTEN else ".png"
        stem = Path(name).with_suffix("") if Path(name).suffix.lower() == own and own else Path(name)
        made.append(Job(source, str(folder / f"{stem}{suffix}")))
    for job in made:
        if Path(job.out).resolve() == Path(job.source).resolve():
            raise UseError(f"{job.source}: would be replaced by the larger one: give another --out-dir")
    outs = [job.out for job in made]
    twice = next((out for out in outs if outs.count(out) > 1), None)
    if twice:
        raise UseError(f"{twice}: would be written twice: pictures of one name need folders of their own")
    return made


def read(source: str) -> Picture:
    """The picture of a file or of standard input; UseError where it cannot be read."""
    if source != STREAM:
        return read_picture(source)
    return decode_picture(io.BytesIO(sys.stdin.buffer.read()), STDIN_NAME)


def write(out: str, picture: Picture, form: str | None) -> list[str]:
    """Write a picture to a file, or to standard output as `form` (png); returns notes on what was lost."""
    if out != STREAM:
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        return write_picture(out, picture)
    data, lost = encode_picture(picture, WRITTEN[f".{form or 'png'}"])
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
    return lost
