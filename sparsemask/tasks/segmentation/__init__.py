"""Semantic segmentation of pictures."""

from sparsemask.tasks.segmentation.task import SegmentationTask

__all__ = ["SegmentationTask"]
