"""The flags of point-cloud tasks; names follow the public code. What is None is settled by the task: as published."""

from __future__ import annotations

from sparsemask.options import factor, fraction, natural, positive


def add_options(group) -> None:
    """The flags that say which clouds, and how they are cut, seen and scored."""
    group.add_argument("--data_root", default=None, help="prepared data (sparsemask prepare-points makes it)")
    group.add_argument(
        "--test_area", type=positive, default=5, help="s3dis: the area to validate on, the others train (default: 5)"
    )
    group.add_argument(
        "--train_scans",
        nargs="+",
        default=None,
        help="semantickitti: sequences (00) or scans (00/000000) to train on (default: the published part)",
    )
    group.add_argument(
        "--eval_scans", nargs="+", default=None, help="semantickitti: likewise to validate on, or to predict"
    )
    group.add_argument("--grid", type=factor, default=None, help="voxels of the prepared data, in metres")
    group.add_argument("--n_points", type=positive, default=None, help="points of a crop")
    group.add_argument("--train_steps", type=positive, default=None, help="batches of an epoch")
    group.add_argument(
        "--val_steps",
        type=positive,
        default=None,
        help="validation while training: so many batches of crops, the same ones every time",
    )
    group.add_argument(
        "--vote_smooth", type=fraction, default=None, help="of an earlier vote when a point is seen again"
    )
    group.add_argument(
        "--vote_until",
        type=fraction,
        default=0.5,
        help="evaluation: vote until the least possibility is above it (default: 0.5, as published)",
    )
    group.add_argument(
        "--six_fold",
        nargs="+",
        default=None,
        metavar="FOLDER",
        help="s3dis: evaluation prints the pooled scores of all predictions below these folders, and does nothing else",
    )
    group.add_argument(
        "--vote_limit", type=natural, default=0, help="evaluation: only the first clouds, 0: all (default: 0)"
    )
