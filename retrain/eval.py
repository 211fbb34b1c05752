"""Evaluate a trained network on the validation pictures.

    python retrain/eval.py                                             the newest retrain run
    python retrain/eval.py --run runs/NAME                             another one
    python retrain/eval.py --pretrained_model FILE --mask_path M       any weights, public ones included
    python retrain/eval.py --space smpointseg --six_fold FOLDER ...    written predictions of all areas as one

Prints the task's figures (segmentation: mean IoU and a table by class); --out FOLDER writes every prediction.
"""

from __future__ import annotations

if not __package__:  # run as a file: the repository's root takes the place of this folder on the path
    import sys
    from pathlib import Path

    sys.path[0] = str(Path(__file__).resolve().parents[1])

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from sparsemask import flags, spaces, tasks
from sparsemask.config import Section, flag
from sparsemask.engine import distributed
from sparsemask.errors import command, say
from sparsemask.options import Parser, factor, natural, positive
from sparsemask.report import next_command
from sparsemask.retrain.trained import family_of, open_trained, read_flags, trained_parser
from sparsemask.spaces.protocols import Exportable


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluationSection(Section):
    """Options of the evaluation."""

    title = "evaluation"
    eval_batch_size: int = flag(1, positive, help="pictures of one size together (default: 1)")
    eval_limit: int = flag(0, natural, help="only the first pictures, 0: all (default: 0)")
    flips: bool = flag(False, help="average over mirrored copies")
    eval_scales: Sequence[float] = flag([1.0], factor, nargs="+", help="average over scales (default: 1)")
    out: str | None = flag(help="folder for the predictions, as PNG (in colours, or grey)")


def parser(space: str = "connectivity", task: str | None = None) -> Parser:
    """The command's flags."""
    return trained_parser(Parser("eval", prog="retrain/eval.py", description=__doc__), EvaluationSection, space, task)


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    space = flags.space_of(argv, newest="retrain")
    command_parser = parser(space, flags.task_of(argv))
    given = read_flags(command_parser, argv, space)
    if given.get("six_fold"):
        config = command_parser.resolve(given)
        say(tasks.find(config.data.task).pooled_text(config.data.six_fold))
        return 0
    restored = open_trained(command_parser, given)
    status = family_of(space).evaluate(restored)
    if (
        restored.run is not None
        and not status
        and distributed.rank() == 0
        and isinstance(spaces.get(space), Exportable)
    ):
        say(f"next: {next_command(restored.run, 'export')}")
    distributed.stop()
    return status


if __name__ == "__main__":
    sys.exit(main())
