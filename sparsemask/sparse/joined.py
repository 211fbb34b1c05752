"""The operator `sparsemask::joined_conv`: a "same" convolution over several features as if they were concatenated.

Concatenating and convolving is summing: no concatenation need be written. Nothing is masked. For inference, like
`sparsemask::attended_block`; backends without a form of their own concatenate.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsemask.sparse import activation as act
from sparsemask.sparse import backends, operators
from sparsemask.sparse.checks import check_joined
from sparsemask.sparse.layout import empty_like, laid_out_like

_CONV = (torch.conv1d, torch.conv2d, torch.conv3d)


def joined_conv(
    xs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    add: Tensor | None = None,
    activation: str = "none",
    backend: str = "auto",
) -> Tensor:
    """act(conv(concatenated xs) + bias + add): xs (N, C_i, *spatial), weight (C_out, ΣC_i, odd sizes).

    backend: of its own it has `native`; `auto` means it where it can compute, else torch's convolution.
    """
    return torch.ops.sparsemask.joined_conv(list(xs), weight, bias, add, activation, backends.current(backend))


def _run(xs, weight, bias, add, activation, backend) -> Tensor:
    check_joined(xs, weight, bias, add, activation)
    kind = xs[0].dtype
    weight, bias = weight.to(kind), bias if bias is None else bias.to(kind)
    name = "native" if backend == "auto" else backend
    server = backends.find(name)
    own = getattr(server, "joined_conv", None)
    if own and server.why_not(xs[0].device, kind) is None:
        return laid_out_like(own(xs, weight, bias, add, activation), xs[0])
    y = _CONV[xs[0].ndim - 3](torch.cat(list(xs), 1), weight, bias, padding="same")
    return laid_out_like(act.apply(activation, y if add is None else y.add_(add)), xs[0])


operators._library.define(
    "joined_conv(Tensor[] xs, Tensor weight, Tensor? bias, Tensor? add, str activation, str backend) -> Tensor",
    tags=operators._tags,
)
operators._library.impl("joined_conv", _run, "CompositeExplicitAutograd")


@torch.library.register_fake("sparsemask::joined_conv")
def _fake(xs, weight, bias, add, activation, backend) -> Tensor:
    return empty_like(xs[0], weight.shape[0], xs[0].shape[2:])


@register_flop_formula(torch.ops.sparsemask.joined_conv, get_raw=True)
def _flops(xs, weight, *_, out_val=None) -> int:
    return 2 * weight.numel() * xs[0].shape[0] * xs[0][0, 0].numel()
