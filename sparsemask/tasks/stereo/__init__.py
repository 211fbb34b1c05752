"""Disparity from two images."""

from sparsemask.tasks.stereo.task import StereoTask

__all__ = ["StereoTask"]
