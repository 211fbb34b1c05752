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

from sparsemask import families, flags, spaces
from sparsemask.errors import command
from sparsemask.options import Parser
from sparsemask.retrain.trained import family_of, for_task


def parser(space: str = "connectivity", task: str | None = None) -> Parser:
    """The command's flags, the family's own included."""
    return families.training_parser(family_of(space), for_task(space, task), "retrain/train.py", __doc__)


def read(argv: Sequence[str] | None, space: str | None = None) -> tuple[Parser, dict]:
    """Parse a command line without reading data.

    Returns:
        The parser of the command line's space, and the flags given on it.

    Raises:
        UseError: an invalid command line.
    """
    space = space or flags.space_of(argv)
    command_parser = parser(spaces.get(space).trained_as, flags.task_of(argv))
    return command_parser, command_parser.given(argv)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    command_parser, _ = read(argv)
    return families.train(family_of(command_parser.get_default("space")), command_parser, argv)


if __name__ == "__main__":
    sys.exit(main())
