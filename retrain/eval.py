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

import importlib
import sys
from collections.abc import Sequence

import spaces
from sparsemask import flags, runs, session
from sparsemask.engine import distributed
from sparsemask.errors import UseError, command
from sparsemask.options import Parser, factor, natural, positive


def parser(space: str = "connectivity") -> Parser:
    """The command's flags."""
    made = Parser("eval", prog="retrain/eval.py", description=__doc__)
    made.add_argument("--config", help="YAML file of flags")
    made.add_argument("--run", default=None, help="the retrain run (default: the newest)")
    made.add_argument("--exp_path", default="runs", help="folder that holds the runs (default: runs)")
    for add in (flags.add_data, flags.add_network, flags.add_device):
        add(made, spaces.get(space))
    group = made.add_argument_group("evaluation")
    group.add_argument("--checkpoint", default="last", help="of the run: last or best (default: last)")
    group.add_argument("--eval_batch_size", type=positive, default=1, help="pictures of one size together (default: 1)")
    group.add_argument("--eval_limit", type=natural, default=0, help="only the first pictures, 0: all (default: 0)")
    group.add_argument("--seed", type=natural, default=0, help="of a random-k mask (default: 0)")
    group.add_argument("--flips", action="store_true", help="average over mirrored copies")
    group.add_argument("--eval_scales", type=factor, nargs="+", default=[1.0], help="average over scales (default: 1)")
    group.add_argument("--out", default=None, help="folder for the predictions, as PNG (in colours, or grey)")
    importlib.import_module(f"retrain.{spaces.get(space).family}").add_eval_options(made)
    return made


@command
def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    space = flags.peek_space(argv, newest="retrain")
    made = parser(space)
    given = made.given(argv)
    given = {**(made.from_file(given["config"], foreign=True) if given.get("config") else {}), **given}
    if given.get("run"):
        for name in ("pretrained_model", "mask_path"):
            if name in given:
                raise UseError(f"--run {given['run']} and --{name} {given[name]}: give the one or the other")
    given.setdefault("space", space)
    family = importlib.import_module(f"retrain.{spaces.get(space).family}")
    if given.get("six_fold"):
        family.pool_predictions(made.resolve(given))
        return 0
    run = None
    if not given.get("pretrained_model"):
        run = (
            runs.find(given["run"])
            if given.get("run")
            else runs.newest(given.get("exp_path", "runs"), "retrain", space)
        )
    options, model, where = family.restore(made, given, run)
    session.prepare(options)
    family.evaluate(options, model, where, run)
    distributed.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
