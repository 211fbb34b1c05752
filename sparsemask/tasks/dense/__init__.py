"""Base of the tasks with a label for every pixel; a user's own dense task derives from :class:`DenseTask`."""

from sparsemask.tasks.dense.task import IGNORE, DenseTask, Meter, resize

__all__ = ["IGNORE", "DenseTask", "Meter", "resize"]
