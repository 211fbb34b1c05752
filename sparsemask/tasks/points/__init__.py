"""Segmentation of point clouds."""

from sparsemask.tasks.points.task import PointsTask

__all__ = ["PointsTask"]
