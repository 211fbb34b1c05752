"""Classification of pictures."""

from sparsemask.tasks.classification.task import ClassificationTask

__all__ = ["ClassificationTask"]
