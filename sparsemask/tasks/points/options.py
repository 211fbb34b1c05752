"""The flags of point-cloud tasks; names follow the public code. None stands for the task's published value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sparsemask.config import flag
from sparsemask.options import factor, fraction, natural, positive
from sparsemask.tasks.protocol import DataSection


@dataclass(frozen=True, kw_only=True, slots=True)
class PointsData(DataSection):
    """Which clouds, and how they are cut, seen and scored."""

    data_root: str | None = flag(help="prepared data (sparsemask prepare-points makes it)")
    test_area: int = flag(5, positive, help="s3dis: the area to validate on, the others train (default: 5)")
    train_scans: Sequence[str] | None = flag(
        nargs="+", help="semantickitti: sequences (00) or scans (00/000000) to train on (default: the published part)"
    )
    eval_scans: Sequence[str] | None = flag(nargs="+", help="semantickitti: likewise to validate on, or to predict")
    grid: float | None = flag(None, factor, help="voxels of the prepared data, in metres")
    n_points: int | None = flag(None, positive, help="points of a crop")
    train_steps: int | None = flag(None, positive, help="batches of an epoch")
    val_steps: int | None = flag(
        None, positive, help="validation while training: so many batches of crops, the same ones every time"
    )
    vote_smooth: float | None = flag(None, fraction, help="of an earlier vote when a point is seen again")
    vote_until: float = flag(
        0.5, fraction, help="evaluation: vote until the least possibility is above it (default: 0.5, as published)"
    )
    six_fold: Sequence[str] | None = flag(
        nargs="+",
        metavar="FOLDER",
        help="s3dis: evaluation prints the pooled scores of all predictions below these folders, and does nothing else",
    )
    vote_limit: int = flag(0, natural, help="evaluation: only the first clouds, 0: all (default: 0)")
