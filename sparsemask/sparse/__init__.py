"""Sparse mask convolution: learnt masks over locations and channels, and convolutions that skip what they drop."""

from __future__ import annotations

from sparsemask.sparse import operators  # noqa: F401  registers sparsemask::conv and sparsemask::block
from sparsemask.sparse.backends import available_backends, backend, register_backend, set_backend
from sparsemask.sparse.derived import Derived
from sparsemask.sparse.geometry import Geometry

__all__ = ["Derived", "Geometry", "available_backends", "backend", "register_backend", "set_backend"]
