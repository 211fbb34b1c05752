"""The operator `sparsemask::joined_conv`: a "same" convolution over several features as if they were concatenated.

Concatenating and convolving is summing: no concatenation need be written. Nothing is masked. For inference, like
`sparsemask::attended_block`; backends without a form of their own concatenate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.ops import activation as act
from sparsemask.ops import dispatch
from sparsemask.ops.checks import check_bias, check_kind
from sparsemask.ops.layout import empty_like
from sparsemask.ops.registration import register

if TYPE_CHECKING:
    from sparsemask.backends import Backend

SCHEMA = "(Tensor[] xs, Tensor weight, Tensor? bias, Tensor? add, str activation, str backend) -> Tensor"
_CONV = (torch.conv1d, torch.conv2d, torch.conv3d)


def joined_conv(
    xs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    activation: str = "none",
    backend: str = "auto",
) -> Tensor:
    """act(conv(concatenated xs) + bias + add).

    Args:
        xs: features (N, C_i, *spatial) each, of one type.
        weight: (C_out, ΣC_i, *kernel), odd kernels, sizes are kept.
        bias: (C_out,).
        add: (N, C_out, *spatial).
        activation: "none", "relu" or "leaky_relu:SLOPE".
        backend: of its own it has `native`; `auto` means it where it can compute, else torch's convolution.

    Returns:
        (N, C_out, *spatial), channels-last in memory where the first feature is.

    Raises:
        UseError: for shapes or types that do not fit, or an unknown activation or backend.
    """
    return torch.ops.sparsemask.joined_conv(list(xs), weight, bias, add, activation, dispatch.current(backend))


def keeps_size(conv: nn.Module) -> bool:
    """Whether a convolution is one that :func:`joined_conv` computes: stride 1, no groups, zeros around, sizes kept."""
    return (
        isinstance(conv, nn.Conv2d | nn.Conv3d)
        and (conv.groups, conv.padding_mode) == (1, "zeros")
        and set(conv.stride) == set(conv.dilation) == {1}
        and all(k % 2 for k in conv.kernel_size)
        and conv.padding == tuple(k // 2 for k in conv.kernel_size)
    )


@dataclass(frozen=True, slots=True)
class ConcatConvCall:
    """Arguments of :func:`joined_conv`, checked; weight and bias in the type of the features."""

    xs: Sequence[Tensor]
    weight: Tensor
    bias: Tensor | None
    add: Tensor | None
    activation: str

    @property
    def like(self) -> Tensor:
        """The features, whose layout and type the result has."""
        return self.xs[0]

    def served_by(self, backend: Backend) -> Tensor:
        """See :meth:`Call.served_by`."""
        return backend.joined_conv(self)


def reference(call: ConcatConvCall) -> Tensor:
    """By concatenating."""
    y = _CONV[call.like.ndim - 3](torch.cat(list(call.xs), 1), call.weight, call.bias, padding="same")
    return act.apply(call.activation, y if call.add is None else y.add_(call.add))


def _run(xs, weight, bias, add, activation, backend) -> Tensor:
    _check(xs, weight, bias, add, activation)
    kind = xs[0].dtype
    bias = bias if bias is None else bias.to(kind)
    return dispatch.serve_anyhow(ConcatConvCall(xs, weight.to(kind), bias, add, activation), backend)


def _check(xs: Sequence[Tensor], weight: Tensor, bias: Tensor | None, add: Tensor | None, activation: str) -> None:
    if not xs:
        raise UseError("a joined convolution needs at least one feature map")
    first, channels = xs[0], sum(x.shape[1] for x in xs)
    for x in xs:
        if x.shape[:1] != first.shape[:1] or x.shape[2:] != first.shape[2:] or x.dtype != first.dtype:
            raise UseError(
                f"features do not go together: {tuple(first.shape)} {first.dtype}, {tuple(x.shape)} {x.dtype}"
            )
    if weight.ndim != first.ndim or weight.shape[1] != channels or any(k % 2 == 0 for k in weight.shape[2:]):
        raise UseError(f"weights {tuple(weight.shape)} do not fit {channels} channels and odd kernels")
    check_bias(bias, weight.shape[0])
    wanted = (first.shape[0], weight.shape[0], *first.shape[2:])
    if add is not None and (tuple(add.shape) != wanted or add.dtype != first.dtype):
        raise UseError(f"what is added must be {wanted} {first.dtype}, got {tuple(add.shape)} {add.dtype}")
    check_kind(first, activation, (*xs, weight, bias, add))


def _fake(xs, weight, bias, add, activation, backend) -> Tensor:
    return empty_like(xs[0], weight.shape[0], xs[0].shape[2:])


def _flops(xs, weight, *_, out_val=None) -> int:
    return 2 * weight.numel() * xs[0].shape[0] * xs[0][0, 0].numel()


register("joined_conv", _run, schema=SCHEMA, fake=_fake, flops=_flops)
