"""Super-resolution of images."""

from sparsemask.tasks.super_resolution.task import SuperResolutionTask

__all__ = ["SuperResolutionTask"]
