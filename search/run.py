"""Search: learn the masks of a space.

    python search/run.py --search                          VOC where it was prepared, else the sample set
    python search/run.py --search --config published       the published protocol
    python search/run.py --search --voc_root VOCdevkit     any devkit folder; or --im_path/--gt_path and two lists
    python search/run.py --resume runs/NAME                go on with a run

Writes runs/<name>/: config.yaml, checkpoints/, metrics.jsonl, TensorBoard events and pictures.
"""

from __future__ import annotations

if not __package__:  # run as a file: the repository's root takes the place of this folder on the path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import importlib
import sys
from collections.abc import Sequence

import spaces
from sparsemask import flags, session
from sparsemask.engine import distributed, fit
from sparsemask.errors import command
from sparsemask.options import Parser, plain


def parser(space: str = "connectivity") -> Parser:
    """The command's flags, the family's own included."""
    made = Parser("search", prog="search/run.py", description=__doc__)
    made.add_argument(
        "--search", dest="_search", action="store_true", help="search (the default here; kept for old command lines)"
    )
    for add in (flags.add_run, flags.add_data, flags.add_network, flags.add_device, flags.add_training):
        add(made, spaces.get(space))
    _family(space).add_options(made)
    return made


def _family(space: str):
    return importlib.import_module(f"search.{spaces.get(space).family}")


def read(argv: Sequence[str] | None, space: str | None = None) -> tuple[Parser, dict]:
    """(the parser that a command line means, what stands on it); UseError where it is none. Reads no data."""
    made = parser(space or flags.peek_space(argv))
    return made, made.given(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    opened = session.open_training(read(argv)[0], argv)
    options, run = opened.options, opened.run
    family = _family(options.space)
    task = opened.task
    with opened.clean():
        model = family.build(opened, task)
        extra = {"verb": "search", "space": options.space, "config": plain(options), **opened.extra}
        result = fit(model, family.method(options), task, options, run, opened.arithmetic, extra, opened.state)
    status = None
    if opened.main:
        run.note(state="finished", result=result)
        status = family.finish(opened, model, task, result)
    distributed.stop()
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
