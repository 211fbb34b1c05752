"""Boundary detection."""

from sparsemask.tasks.edges.task import EdgesTask

__all__ = ["EdgesTask"]
