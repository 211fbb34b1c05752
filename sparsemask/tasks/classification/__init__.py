"""Classification of images."""

from sparsemask.tasks.classification.task import ClassificationTask

__all__ = ["ClassificationTask"]
