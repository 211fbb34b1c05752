"""Sparse mask convolution by indirect products in C++: rows are read where they lie, nothing is gathered first.

Built on first use (:mod:`sparsemask.sparse.native.build`) for every vector width of the processor family, chosen at run
time, and not trusted before small problems came out right on the processor at hand
(:mod:`sparsemask.sparse.native.selfcheck`). Threads are torch's. float32; other types are computed by other backends.
"""

from __future__ import annotations

import sys
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["BACKEND", "Native"]


@lru_cache(maxsize=1)
def _absent() -> str | None:
    from sparsemask.sparse.native import build, library, selfcheck

    try:
        library.lib()
    except (build.NoCompiler, OSError) as error:
        return str(error)
    wrong = selfcheck.trust()
    if wrong is not None:
        reason = f"the kernels built here compute wrong results on this processor ({wrong}); please report it"
        say_absent(reason)
        return reason
    return None


@lru_cache(maxsize=1)
def say_absent(reason: str) -> None:
    """Say, once, that PyTorch computes in the kernels' place, and why."""
    print(f"sparse kernels in C++ are not to be had, pure PyTorch computes: {reason}", file=sys.stderr, flush=True)


class Native:
    """The backend `native`; see :mod:`sparsemask.sparse.backends` for what its methods take."""

    name = "native"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot compute on this device in this type; None where it can."""
        if torch.device(device).type != "cpu":
            return "native kernels are for CPUs"
        if dtype != torch.float32:
            return f"native kernels compute in float32, not {str(dtype).removeprefix('torch.')}"
        return _absent()

    def conv(self, x, weight, bias, mask, in_dense, out_dense, geometry, activation) -> Tensor:
        """One sparse mask convolution."""
        from sparsemask.sparse.native.conv import conv

        return conv(x, weight, bias, mask, in_dense, out_dense, geometry, activation)

    def block(self, x, mask, weights, dense, collect_weight, collect_bias, activation) -> Tensor:
        """A module's layers and their fusion."""
        from sparsemask.sparse.native.block import block

        return block(x, mask, weights, dense, collect_weight, collect_bias, activation)

    def attended_block(self, x, mask, weights, dense, collect_weight, collect_bias, activation, attention) -> Tensor:
        """A module with its channel attention, and its input added."""
        from sparsemask.sparse import attended
        from sparsemask.sparse.native.block import block

        factors = lambda mean: attended.factors(mean, attention)
        one = lambda i: block(x[i], mask[i], weights, dense, collect_weight, collect_bias, activation, factors)
        if len(x) == 1:
            return one(slice(None))
        return torch.cat([one(slice(i, i + 1)) for i in range(len(x))])

    def inverted_residual(self, *arguments) -> Tensor:
        """Expansion, depth-wise and projection under one data mask."""
        from sparsemask.sparse.native.inverted_residual import inverted_residual

        return inverted_residual(*arguments)

    def locate(self, *arguments) -> Tensor:
        """Which places of a module's output are kept."""
        from sparsemask.sparse.native.locate import locate

        return locate(*arguments)

    def fuse_scales(self, xs, *rest) -> Tensor:
        """Features of several sizes convolved, upsampled, summed, and relu6 of it."""
        from sparsemask.sparse import scales
        from sparsemask.sparse.native.scales import MOST, fuse_scales

        return (fuse_scales if len(xs) <= MOST else scales.plain)(xs, *rest)

    def joined_conv(self, xs, weight, bias, add, activation) -> Tensor:
        """An unmasked convolution over several features as if they were concatenated."""
        from sparsemask.sparse.native.joined import joined_conv

        return joined_conv(xs, weight, bias, add, activation)


BACKEND = Native()
