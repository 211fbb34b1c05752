"""The sum of two features and its ReLU, in one pass over memory where the native kernels are at hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.sparse import backends


def add_relu(a: Tensor, b: Tensor, mask: Tensor | None = None, dense: Tensor | None = None) -> Tensor:
    """relu(a + b), both (N, C, *spatial); where gradients are off, in place of `a` if that is possible.

    mask: bool (N, 1, *spatial), and dense: bool (C,), channels that are true first: the others are zero except at kept
    locations.
    """
    if torch.is_grad_enabled():
        return _gated(F.relu(a + b), mask, dense)
    if torch.compiler.is_compiling() or not _native(a, b):
        return _gated(a.add_(b).relu_(), mask, dense)
    from sparsemask.sparse.native import library

    rows, other = (one.movedim(1, -1).reshape(-1, one.shape[1]) for one in (a, b))
    if mask is None:
        library.add_relu(rows, other)
    else:
        library.add_relu(rows, other, mask.reshape(-1), int(dense.sum()))
    return a


def _gated(y: Tensor, mask: Tensor | None, dense: Tensor | None) -> Tensor:
    if mask is None:
        return y
    return y * (mask | dense.view(1, -1, *[1] * (y.ndim - 2)))


def _native(a: Tensor, b: Tensor) -> bool:
    last = all(one.movedim(1, -1).is_contiguous() for one in (a, b))
    return last and backends.find("native").why_not(a.device, a.dtype) is None
