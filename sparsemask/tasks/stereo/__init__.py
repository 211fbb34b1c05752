"""Disparity from two pictures."""

from sparsemask.tasks.stereo.task import StereoTask

__all__ = ["StereoTask"]
