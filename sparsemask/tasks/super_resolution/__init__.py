"""Super-resolution of pictures."""

from sparsemask.tasks.super_resolution.task import SuperResolutionTask

__all__ = ["SuperResolutionTask"]
