"""Salient object detection."""

from sparsemask.tasks.saliency.task import SaliencyTask

__all__ = ["SaliencyTask"]
