"""sparsemask: learn where a network should connect and compute, and make the result really faster."""

from __future__ import annotations

import importlib
import os

# Loader workers share the cores with the arithmetic. A waiting OpenMP thread that spins for long (the default) then
# takes the core from the one it waits for: a training step on two busy cores took 9 s instead of 0.2 s. One that sleeps
# at once takes longer to wake than a small layer lasts: networks of small features then take longer with two threads
# than with one. So threads spin for some microseconds before they sleep (GNU's OpenMP, which PyTorch comes with on
# Linux). Read when torch loads; bench/waiting.py measures it.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

from sparsemask import _checkout  # noqa: E402
from sparsemask._version import __version__  # noqa: E402
from sparsemask.errors import UseError  # noqa: E402

_checkout.install()

# Loaded on first use, so that `sparsemask --help` does not import torch.
_LAZY = {
    "load_mask": "sparsemask.masks",
    "save_mask": "sparsemask.masks",
    "load_weights": "sparsemask.weights",
    "trust": "sparsemask.plugins",
    "SegmentationModel": "sparsemask.api.smp",
    "evaluate": "sparsemask.api.training",
    "load": "sparsemask.api.loading",
    "open_predictor": "sparsemask.api.prediction",
    "plan": "sparsemask.spaces.group_sparsity.shrinking",
    "predict": "sparsemask.api.prediction",
    "save": "sparsemask.spaces.group_sparsity.shrinking",
    "shrink": "sparsemask.spaces.group_sparsity.shrinking",
    "sparsify": "sparsemask.spaces.sparsified",
}

__all__ = ["UseError", "__version__", *_LAZY]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)  # imported when first asked for
    raise AttributeError(f"module 'sparsemask' has no attribute '{name}'")
