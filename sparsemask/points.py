"""Point clouds for networks: reading them, their neighbour lists, and the batches that networks take."""

from sparsemask.tasks.points.clouds import (
    IGNORED,
    Cloud,
    CloudFile,
    batch,
    build_graph,
    grid_subsample,
    knn,
    nearest,
    read_cloud,
    read_ply,
    write_ply,
)
from sparsemask.tasks.points.clouds.batch import PointBatch

__all__ = [
    "IGNORED",
    "Cloud",
    "CloudFile",
    "PointBatch",
    "batch",
    "build_graph",
    "grid_subsample",
    "knn",
    "nearest",
    "read_cloud",
    "read_ply",
    "write_ply",
]
