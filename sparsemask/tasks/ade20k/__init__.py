"""Scene parsing on ADE20K."""

from sparsemask.tasks.ade20k.task import Ade20kTask

__all__ = ["Ade20kTask"]
