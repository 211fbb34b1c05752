"""The operator `sparsemask::merge_kept`: kept features in their places, and elsewhere a 1×1 convolution of others.

See :mod:`sparsemask.ops.kept_conv` for kept features. For inference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.ops import dispatch
from sparsemask.ops.checks import check_bias, check_kind, check_mask
from sparsemask.ops.kept_conv import rows_of_kept
from sparsemask.ops.layout import empty_like, from_rows, laid_out_like, to_rows
from sparsemask.ops.registration import register

SCHEMA = "(Tensor y, Tensor x, Tensor mask, Tensor places, Tensor weight, Tensor? bias, str backend) -> Tensor"


@dataclass(frozen=True, slots=True)
class MergeKeptCall:
    """Arguments of the operator, checked.

    Attributes:
        y: kept features (1, C, K, 1) of the mask.
        x: features (N, C', H, W).
        mask: bool (N, 1, H, W).
        places: int64 (K,), the locations that it keeps.
        weight: of the 1×1 convolution of x, (C, C' / groups, 1, 1); bias: (C,) or None; in the type of x.
    """

    y: Tensor
    x: Tensor
    mask: Tensor
    places: Tensor
    weight: Tensor
    bias: Tensor | None

    @property
    def groups(self) -> int:
        """Of the convolution."""
        return self.x.shape[1] // self.weight.shape[1]


def reference(call: MergeKeptCall) -> Tensor:
    """Of torch's own operators."""
    rows = to_rows(F.conv2d(call.x, call.weight, call.bias, groups=call.groups))
    return from_rows(rows.index_copy(0, call.places, rows_of_kept(call.y)), len(call.x), call.x.shape[2:])


def _run(y, x, mask, places, weight, bias, backend) -> Tensor:
    check_mask(mask, x, x.shape[2:])
    channels = weight.shape[0]
    if tuple(y.shape) != (1, channels, len(places), 1):
        raise UseError(f"kept features are (1, {channels}, {len(places)}, 1), got {tuple(y.shape)}")
    if weight.ndim != 4 or tuple(weight.shape[2:]) != (1, 1) or x.shape[1] % weight.shape[1]:
        raise UseError(f"weights {tuple(weight.shape)} are of no 1×1 convolution of {x.shape[1]} channels")
    check_bias(bias, channels)
    check_kind(x, "none", (y, mask, places, weight, bias))
    bias = bias if bias is None else bias.to(x.dtype)
    call = MergeKeptCall(y.to(x.dtype), x, mask, places, weight.to(x.dtype), bias)
    return laid_out_like(dispatch.able_or_reference(backend, x).merge_kept(call), x)


def _fake(y, x, mask, places, weight, bias, backend) -> Tensor:
    return empty_like(x, weight.shape[0], x.shape[2:])


def _flops(y, x, mask, places, weight, *_, out_val=None) -> int:
    """Of what is dropped alone."""
    return 2 * weight.numel() * (mask.numel() - y.shape[2])


register("merge_kept", _run, schema=SCHEMA, fake=_fake, flops=_flops)
