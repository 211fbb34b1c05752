"""sparsemask: learn where a network should connect and compute, and make the result really faster."""

from __future__ import annotations

import importlib

from sparsemask._version import __version__
from sparsemask.errors import UseError

# Loaded on first use, so that `sparsemask --help` does not import torch.
_LAZY = {
    "load_mask": "sparsemask.masks",
    "save_mask": "sparsemask.masks",
    "load_weights": "sparsemask.weights",
}

__all__ = ["UseError", "__version__", *_LAZY]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'sparsemask' has no attribute '{name}'")
