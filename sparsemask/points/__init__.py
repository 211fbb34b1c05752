"""Point clouds: files, grids, neighbours, the data sets' layouts and their preparation."""

from sparsemask.points.clouds import IGNORED, Cloud, CloudFile, read_cloud
from sparsemask.points.graph import build_graph, knn, nearest
from sparsemask.points.grid import grid_subsample
from sparsemask.points.ply import read_ply, write_ply

__all__ = [
    "IGNORED",
    "Cloud",
    "CloudFile",
    "build_graph",
    "grid_subsample",
    "knn",
    "nearest",
    "read_cloud",
    "read_ply",
    "write_ply",
]
