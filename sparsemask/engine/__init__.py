"""The training engine: one loop for every family."""

from sparsemask.engine.loop import Method, fit

__all__ = ["Method", "fit"]
