"""The training engine: one loop for every family."""

from sparsemask.engine.loop import fit
from sparsemask.engine.method import Method, optimizer

__all__ = ["Method", "fit", "optimizer"]
