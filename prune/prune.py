"""Prune: make the masks of a search hard.

    python prune/prune.py --thres 0.001                    the newest search run
    python prune/prune.py --thres 0.001 --run runs/NAME    another one
    python prune/prune.py --checkpoint FILE                any checkpoint, public ones included

Writes the mask into the run's folder and to --out, with a json beside each that says where it comes from.
"""

from __future__ import annotations

if not __package__:  # run as a file: the repository's root takes the place of this folder on the path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from sparsemask import families, flags, runs, spaces
from sparsemask.config import Section, flag
from sparsemask.errors import command
from sparsemask.options import Parser


@dataclass(frozen=True, kw_only=True, slots=True)
class PruneSection(Section):
    """The search to prune, and the mask file to write."""

    config: str | None = flag(help="YAML file of flags", transient=True)
    exp_path: str = flag("runs", help="folder that holds the runs (default: runs)")
    run: str | None = flag(help="the search run (default: the newest)")
    checkpoint: str | None = flag(help="a checkpoint file instead of a run")
    out: str | None = flag(help="the mask file to write (default: mask.npy, or mask.npz)")


def parser(space: str = "connectivity") -> Parser:
    """The command's flags, the family's own included."""
    command_parser = Parser("prune", prog="prune/prune.py", description=__doc__)
    name = spaces.get(space).name
    command_parser.add_section("run", PruneSection, only=("config",))
    command_parser.add_section("network", flags.SpaceSection, defaults={"space": name})
    command_parser.add_section("run", PruneSection, only=("exp_path", "run", "checkpoint", "out"))
    families.find("prune", spaces.get(space)).add_options(command_parser)
    return command_parser


def read(argv: Sequence[str] | None, space: str | None = None) -> tuple[Parser, dict]:
    """Parse a command line without reading data.

    Returns:
        The parser of the command line's space, and the flags given on it.

    Raises:
        UseError: an invalid command line.
    """
    command_parser = parser(space or flags.space_of(argv, newest="search"))
    return command_parser, command_parser.given(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    command_parser, given = read(argv)
    space = command_parser.get_default("space")
    config = command_parser.resolve(command_parser.from_file(given["config"]) if given.get("config") else {}, given)
    run = None
    if config.run.checkpoint is None:
        run = runs.find(config.run.run) if config.run.run else runs.newest(config.run.exp_path, "search", space)
    families.find("prune", spaces.get(space)).prune(config, given, run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
