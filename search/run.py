"""Search: learn the masks of a space.

    python search/run.py --search                          VOC where it was prepared, else the sample set
    python search/run.py --search --config published       the published protocol
    python search/run.py --search --voc_root VOCdevkit     any devkit folder; or --im_path/--gt_path and two lists
    python search/run.py --search --resume runs/NAME       go on with a run

Writes runs/<name>/: config.yaml, checkpoints/, metrics.jsonl, TensorBoard events and pictures.
"""

from __future__ import annotations

if not __package__:  # run as a file: the repository's root takes the place of this folder on the path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import sys
from collections.abc import Sequence

from sparsemask import families, flags, spaces
from sparsemask.errors import command
from sparsemask.options import Parser


def parser(space: str = "connectivity") -> Parser:
    """The command's flags, the family's own included."""
    family = families.find("search", spaces.get(space))
    ignored = {"search": "search (the default here; kept for old command lines)"}
    return families.training_parser(family, spaces.get(space), "search/run.py", __doc__, ignored)


def read(argv: Sequence[str] | None, space: str | None = None) -> tuple[Parser, dict]:
    """Parse a command line without reading data.

    Returns:
        The parser of the command line's space, and the flags given on it.

    Raises:
        UseError: an invalid command line.
    """
    command_parser = parser(space or flags.space_of(argv))
    return command_parser, command_parser.given(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    command_parser, _ = read(argv)
    family = families.find("search", spaces.get(command_parser.get_default("space")))
    return families.train(family, command_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
