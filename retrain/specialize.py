"""Specialise: learn where, and in which channels, a trained network needs to compute for the task at hand.

    python retrain/specialize.py                                    the newest retrained network
    python retrain/specialize.py --run runs/NAME --keep 0.4         another one, and another share of the multiply-adds
    python retrain/specialize.py --mask_path mask.npy --ft_model W  a connectivity mask and weights of its network
    python retrain/specialize.py --run runs/NAME --task saliency --data_root MSRA-B
    python retrain/specialize.py --run runs/NAME --task super_resolution --scale 2 --hr_path pictures
    python retrain/specialize.py --space sr --weights realesr.pth --hr_path photos --keep 0.5     public networks, which
                                                                    teach themselves: any folder of pictures will do
    python retrain/specialize.py --space smpointseg --ft_model W    masks of these networks, from dense weights;
    python retrain/specialize.py --space smstereo --ft_model W      likewise --space smsr

Writes runs/<name>/: config.yaml, checkpoints/, metrics.jsonl, pictures, network.safetensors, mask.npz (all masks: of
connections, channels and locations) and forms.json, the table of its dense, masked and skipping form.
"""

from __future__ import annotations

if not __package__:  # run as a file: the repository's root takes the place of this folder on the path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import sys
from collections.abc import Sequence

from sparsemask import families, flags, spaces
from sparsemask.errors import UseError, command
from sparsemask.options import Parser
from sparsemask.retrain.specializing.family import FAMILY
from sparsemask.retrain.specializing.start import check_start
from sparsemask.retrain.trained import for_task
from sparsemask.spaces import Space

SPACE = "specialized"


def space_of(argv: Sequence[str] | None) -> Space:
    """Return the space whose masks are learnt, for the task of the command line.

    Raises:
        UseError: a space without fine-grained masks.
    """
    typed = flags.typed(argv)
    again = typed.keys() & {"resume", "config"}  # --run names what is started from, which may have another task
    name = typed.get("space") or (flags.space_of(argv) if again else SPACE)
    name = SPACE if name == "connectivity" else name
    if spaces.get(name).family != "sparse_conv":
        raise UseError(f"--space {name}: its networks have no fine-grained masks to specialise")
    return for_task(name, flags.task_of(argv) if again else typed.get("task") or None)


def parser(space: Space) -> Parser:
    """The command's flags, the family's own included."""
    return families.training_parser(FAMILY, space, "retrain/specialize.py", __doc__)


def read(argv: Sequence[str] | None, space: str | None = None) -> tuple[Parser, dict]:
    """Parse a command line without reading data.

    Returns:
        The parser of the command line's space, and the flags given on it.

    Raises:
        UseError: an invalid command line.
    """
    command_parser = parser(spaces.get(space) if space else space_of(argv))
    given = command_parser.given(argv)
    check_start(given)
    return command_parser, given


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    return families.train(FAMILY, read(argv)[0], argv)


if __name__ == "__main__":
    sys.exit(main())
