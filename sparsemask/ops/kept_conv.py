"""The operator `sparsemask::kept_conv`: a convolution at the kept locations alone, whose outputs lie side by side.

*Kept features* (1, C, K, 1) are those of the K locations that a mask keeps, in row order; elsewhere they are zero. A
chain of convolutions under one mask so holds no map in between, and what treats every location by itself (activations,
sums, gates) is computed at kept locations alone, by torch. For inference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.ops import activation as act
from sparsemask.ops import dispatch
from sparsemask.ops.checks import check_bias, check_kind, check_mask
from sparsemask.ops.conv import geometry_of
from sparsemask.ops.dense_part import dense_conv
from sparsemask.ops.geometry import Geometry
from sparsemask.ops.layout import from_rows, to_rows
from sparsemask.ops.registration import register

SCHEMA = (
    "(Tensor x, Tensor weight, Tensor? bias, Tensor mask, Tensor places, int[] padding, int[] dilation, int groups, "
    "bool kept, str activation, Tensor? slopes, str backend) -> Tensor"
)


@dataclass(frozen=True, slots=True)
class KeptConvCall:
    """A convolution at kept locations, its arguments checked.

    Attributes:
        x: features (N, C_in, H, W), or kept features (1, C_in, K, 1) of the mask.
        weight: (C_out, C_in / groups, kh, kw); bias: (C_out,) or None; in the type of x.
        mask: bool (N, 1, H, W).
        places: int64 (K,), the locations that it keeps.
        kept: whether x are kept features.
        geometry: of stride 1, which keeps the size.
        activation: "none", "relu" or "leaky_relu:SLOPE".
        slopes: of a PReLU behind the activation, (C_out,) or (1,), float32; or None.
    """

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    mask: Tensor
    places: Tensor
    kept: bool
    geometry: Geometry
    activation: str
    slopes: Tensor | None


def kept_places(mask: Tensor) -> Tensor:
    """The locations that a mask bool (N, 1, H, W) keeps, as rows of a feature map, int64 (K,)."""
    return mask.flatten().nonzero()[:, 0]


def kept_features(x: Tensor, places: Tensor) -> Tensor:
    """The kept features (1, C, K, 1) of features (N, C, H, W); places: int64 (K,), see :func:`kept_places`."""
    return as_kept(to_rows(x).index_select(0, places))


def as_kept(rows: Tensor) -> Tensor:
    """Rows (K, C) as kept features, a view."""
    return rows[None, :, None].movedim(-1, 1)


def rows_of_kept(y: Tensor) -> Tensor:
    """Kept features as rows (K, C), a view."""
    return y[0, :, :, 0].T


def reference(call: KeptConvCall) -> Tensor:
    """Of torch's own operators: the whole convolution, of which the kept locations are taken."""
    x = call.x
    if call.kept:
        whole = x.new_zeros(call.mask.numel(), x.shape[1]).index_copy(0, call.places, rows_of_kept(x))
        x = from_rows(whole, len(call.mask), call.mask.shape[2:])
    y = kept_features(dense_conv(x, call.weight, call.bias, call.geometry), call.places)
    return activated(call, act.apply(call.activation, y))


def activated(call: KeptConvCall, y: Tensor) -> Tensor:
    """What a call's PReLU makes of kept features."""
    return y if call.slopes is None else F.prelu(y, call.slopes.to(y.dtype))


def _run(x, weight, bias, mask, places, padding, dilation, groups, kept, activation, slopes, backend) -> Tensor:
    n_out = weight.shape[0]
    geometry = geometry_of(weight, (1, 1), padding, dilation, (0, 0), False, groups)
    if kept:
        if x.ndim != 4 or (x.shape[0], x.shape[2], x.shape[3]) != (1, len(places), 1):
            raise UseError(f"kept features are (1, C, {len(places)}, 1), got {tuple(x.shape)}")
    else:
        check_mask(mask, x, x.shape[2:])
    if weight.ndim != 4 or x.shape[1] != weight.shape[1] * groups:
        raise UseError(f"features have {x.shape[1]} channels, the weights {tuple(weight.shape)} take {groups} groups")
    if tuple(geometry.output_size(mask.shape[2:])) != tuple(mask.shape[2:]):
        raise UseError("a convolution at kept locations keeps the size")
    check_bias(bias, n_out)
    check_kind(x, activation, (mask, places, weight, bias, slopes))
    if slopes is not None and slopes.shape not in ((n_out,), (1,)):
        raise UseError(f"a PReLU behind {n_out} channels has {n_out} slopes or one, got {tuple(slopes.shape)}")
    weight, bias = weight.to(x.dtype), bias if bias is None else bias.to(x.dtype)
    call = KeptConvCall(x, weight, bias, mask, places, kept, geometry, activation, slopes)
    return dispatch.able_or_reference(backend, x).kept_conv(call)


def _fake(x, weight, bias, mask, places, *_) -> Tensor:
    return as_kept(x.new_empty(places.shape[0], weight.shape[0]))


def _flops(x, weight, *_, out_val=None) -> int:
    return 2 * weight.numel() * out_val.shape[2]


register("kept_conv", _run, schema=SCHEMA, fake=_fake, flops=_flops)
