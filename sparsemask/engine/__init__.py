"""The training engine: one loop for every family."""

from sparsemask.engine.loop import Method, fit, optimizer

__all__ = ["Method", "fit", "optimizer"]
