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
    """Which search, and where its mask goes."""

    config: str | None = flag(help="YAML file of flags", transient=True)
    exp_path: str = flag("runs", help="folder that holds the runs (default: runs)")
    run: str | None = flag(help="the search run (default: the newest)")
    checkpoint: str | None = flag(help="a checkpoint file instead of a run")
    out: str | None = flag(help="the mask file to write (default: mask.npy, or mask.npz)")


def parser(space: str = "connectivity") -> Parser:
    """The command's flags, the family's own included."""
    made = Parser("prune", prog="prune/prune.py", description=__doc__)
    name = spaces.get(space).name
    made.add_section("run", PruneSection, only=("config",))
    made.add_section("network", flags.SpaceSection, defaults={"space": name})
    made.add_section("run", PruneSection, only=("exp_path", "run", "checkpoint", "out"))
    families.find("prune", spaces.get(space)).add_options(made)
    return made


def read(argv: Sequence[str] | None, space: str | None = None) -> tuple[Parser, dict]:
    """(the parser that a command line means, what stands on it); UseError where it is none. Reads no data."""
    made = parser(space or flags.space_of(argv, newest="search"))
    return made, made.given(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    made, given = read(argv)
    space = made.get_default("space")
    config = made.resolve(made.from_file(given["config"]) if given.get("config") else {}, given)
    run = None
    if config.run.checkpoint is None:
        run = runs.find(config.run.run) if config.run.run else runs.newest(config.run.exp_path, "search", space)
    families.find("prune", spaces.get(space)).prune(config, given, run)
    return 0


if __name__ == "__main__":
    sys.exit(main())
