"""What the tasks with a label for every pixel share; a user's own task of that kind derives from :class:`DenseTask`."""

from sparsemask.tasks.dense.task import IGNORE, DenseTask, Meter, resize

__all__ = ["IGNORE", "DenseTask", "Meter", "resize"]
