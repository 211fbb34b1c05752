"""The sum of two features and its ReLU, in one pass over memory where the native kernels are at hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.ops import dispatch


def add_relu(a: Tensor, b: Tensor, mask: Tensor | None = None, dense: Tensor | None = None) -> Tensor:
    """relu(a + b); where gradients are off, in place of `a` if that is possible.

    Args:
        a, b: (N, C, *spatial).
        mask: bool (N, 1, *spatial), given together with `dense`, bool (C,), channels that are true first: the others
            are zero except at kept locations.

    Returns:
        (N, C, *spatial).
    """
    if torch.is_grad_enabled():
        return gated(F.relu(a + b), mask, dense)
    if torch.compiler.is_compiling():
        return reference(a, b, mask, dense)
    return dispatch.able_or_reference("native", a).add_relu(a, b, mask, dense)


def reference(a: Tensor, b: Tensor, mask: Tensor | None, dense: Tensor | None) -> Tensor:
    """Of torch's own operators, in place of `a`."""
    return gated(a.add_(b).relu_(), mask, dense)


def gated(y: Tensor, mask: Tensor | None, dense: Tensor | None) -> Tensor:
    """y with zeros where sparse channels are dropped."""
    if mask is None:
        return y
    return y * (mask | dense.view(1, -1, *[1] * (y.ndim - 2)))
