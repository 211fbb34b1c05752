"""Retrain: build the small network that a mask describes, train it from the pretrained encoder, evaluate it.

    python retrain/train.py --mask_path mask.npy
    python retrain/train.py --mask_path unet               a named mask: unet, sparseacn, dense, random-15, fcn, ...
    python retrain/train.py --mask_path mask.npy --ft_model runs/NAME/checkpoints/last.pt --training_list train.txt
    python retrain/train.py --resume runs/NAME             go on with a run

Writes runs/<name>/: config.yaml, mask.npy, checkpoints/, network.safetensors, metrics.jsonl, pictures.
"""

from __future__ import annotations

if not __package__:  # run as a file: the repository's root takes the place of this folder on the path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import sys
from collections.abc import Sequence

import spaces
from retrain.opening import family_of, for_task
from sparsemask import flags, session
from sparsemask.engine import distributed, fit
from sparsemask.errors import command
from sparsemask.options import Parser, plain


def parser(space: str = "connectivity", task: str | None = None) -> Parser:
    """The command's flags, the family's own included."""
    made = Parser("retrain", prog="retrain/train.py", description=__doc__)
    for add in (flags.add_run, flags.add_data, flags.add_network, flags.add_device, flags.add_training):
        add(made, for_task(space, task))
    family_of(space).add_options(made)
    return made


def read(argv: Sequence[str] | None, space: str | None = None) -> tuple[Parser, dict]:
    """(the parser that a command line means, what stands on it); UseError where it is none. Reads no data."""
    space = space or flags.peek_space(argv)
    made = parser(spaces.get(space).trained_as, flags.peek_task(argv))
    return made, made.given(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    made, _ = read(argv)
    family = family_of(made.get_default("space"))
    opened = session.open_training(made, argv, family.check)
    options, run = opened.options, opened.run
    task = opened.task
    with opened.clean():
        model, extra = family.build(opened, task)
        extra = {"verb": "retrain", "space": options.space, "config": plain(options), **extra}
        result = fit(model, family.method(options), task, options, run, opened.arithmetic, extra, opened.state)
    status = None
    if opened.main:
        run.note(state="finished", result=result)
        status = family.finish(opened, model, task, result)
    distributed.stop()
    return status or 0


if __name__ == "__main__":
    sys.exit(main())
