"""Semantic segmentation of images."""

from sparsemask.tasks.segmentation.task import SegmentationTask

__all__ = ["SegmentationTask"]
