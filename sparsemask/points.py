"""Point clouds for networks: reading them, their neighbour lists, and the batches that networks take."""

from sparsemask.tasks.points.clouds import batch
from sparsemask.tasks.points.clouds.batch import PointBatch
from sparsemask.tasks.points.clouds.cloud import IGNORED, Cloud, CloudFile, read_cloud
from sparsemask.tasks.points.clouds.graph import build_graph, knn, nearest
from sparsemask.tasks.points.clouds.grid import grid_subsample
from sparsemask.tasks.points.clouds.ply import read_ply, write_ply

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
