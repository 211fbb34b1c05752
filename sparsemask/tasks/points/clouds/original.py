"""From thinned-out clouds back to all points: what is written under a scan's name is of all its points, or is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from sparsemask.errors import UseError
from sparsemask.tasks.points.clouds.cloud import Cloud, has_projection
from sparsemask.tasks.points.clouds.graph import make_tree, nearest


def check_original(name: str, projection: Path, original: Path, hint: str) -> None:
    """UseError unless a thinned-out cloud's way back to all points is known; nothing is read.

    Args:
        name: of the cloud.
        projection: its stem, as for :func:`~sparsemask.tasks.points.clouds.cloud.read_projection`.
        original: the file of all points.
        hint: what makes either.
    """
    if not has_projection(projection) and not original.is_file():
        raise UseError(
            f"{name}: a thinned-out cloud, from which there is no way back to all points: neither a projection "
            f"({projection.name}_proj.npz) nor the original ({original}) is there; {hint}"
        )


def carry_back(values: np.ndarray, cloud: Cloud, original: Callable[[], np.ndarray]) -> np.ndarray:
    """Values of all original points (N_original,) from those of a thinned-out cloud's points, the nearest one's.

    Values that are of all points already, by the cloud's projection, are returned as they are.

    Args:
        values: (N,), or (N_original,).
        cloud: the thinned-out one.
        original: gives the original points (N_original, 3), in the frame of `cloud.coordinates`; called where the
            cloud has no projection.
    """
    if cloud.projection is not None:
        back = cloud.projection
        if len(values) == len(back):
            return values
    else:
        back = nearest(cloud.coordinates, original(), tree=make_tree(cloud.coordinates))
    if len(values) != len(cloud):
        raise UseError(f"{cloud.name}: {len(values)} predictions for {len(cloud)} points, of {len(back)}")
    return values[back]
