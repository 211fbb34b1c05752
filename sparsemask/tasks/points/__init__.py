"""Segmentation of point clouds: the task, its readers (`clouds`), data sets (`layouts`) and their preparation."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sparsemask.tasks.points.task import PointsTask

__all__ = ["PointsTask"]


def __getattr__(name: str) -> object:  # readers and generated data are imported without the task
    if name == "PointsTask":
        from sparsemask.tasks.points.task import PointsTask

        return PointsTask
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
