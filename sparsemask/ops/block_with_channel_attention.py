"""The operator `sparsemask::attended_block`: a module's block, channel attention on its output, and its input added.

As one operator it never has to write the unscaled output (see :mod:`sparsemask.backends.native.block`). For inference:
it has no gradients; where some are wanted :class:`sparsemask.sparse.SparseMaskBlock` and the attention are called in
turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.ops import block, dispatch
from sparsemask.ops.block import BlockCall
from sparsemask.ops.layout import empty_like
from sparsemask.ops.registration import register

if TYPE_CHECKING:
    from sparsemask.backends import Backend

Attention = tuple[Tensor, Tensor, Tensor, Tensor]
SCHEMA = (
    "(Tensor x, Tensor mask, Tensor[] weights, Tensor dense, Tensor collect_weight, Tensor? collect_bias, "
    "Tensor[] attention, str activation, str backend) -> Tensor"
)


@dataclass(frozen=True, slots=True)
class AttendedBlockCall:
    """A block with its channel attention, the arguments checked.

    Attributes:
        block: as many output channels as its input has.
        attention: weight (r, C) and bias (r,) of the squeezing layer, weight (C, r) and bias (C,) of the exciting one,
            in the type of the features; trailing ones, as 1×1 convolutions have them, are fine.
    """

    block: BlockCall
    attention: Attention

    @property
    def like(self) -> Tensor:
        """The features, whose layout and type the result has."""
        return self.block.x

    def served_by(self, backend: Backend) -> Tensor:
        """See :meth:`Call.served_by`."""
        return backend.attended_block(self)


def factors(mean: Tensor, attention: Attention) -> Tensor:
    """sigmoid(excite(relu(squeeze(mean)))) of means (N, C): (N, C) in (0, 1). RCAN (arXiv 1807.02758), section 3.3."""
    squeeze, squeeze_bias, excite, excite_bias = attention
    narrow = F.relu(F.linear(mean, squeeze.flatten(1), squeeze_bias))
    return torch.sigmoid(F.linear(narrow, excite.flatten(1), excite_bias))


def compose(backend: Backend, call: AttendedBlockCall) -> Tensor:
    """x + a·y from a backend's block y."""
    y = backend.block(call.block)
    a = factors(y.flatten(2).mean(2), call.attention)
    return y.mul_(a.view(*a.shape, *[1] * (y.ndim - 2))).add_(call.block.x)


def _run(x, mask, weights, dense, collect_weight, collect_bias, attention, activation, backend) -> Tensor:
    inner = block.checked(x, mask, weights, dense, collect_weight, collect_bias, activation)
    _check(x, collect_weight, attention)
    if not mask.numel():
        return empty_like(x, len(collect_weight), x.shape[2:])
    return dispatch.serve(AttendedBlockCall(inner, tuple(one.to(x.dtype) for one in attention)), backend)


def _check(x: Tensor, collect_weight: Tensor, attention: Sequence[Tensor]) -> None:
    channels = collect_weight.shape[0]
    if x.shape[1] != channels:
        raise UseError(f"the input is added: its {x.shape[1]} channels must be the {channels} of the output")
    given = [tuple(one.shape) for one in attention]
    if len(given) == 4 and len(given[0]) >= 2:
        narrow = given[0][0]
        wanted = [(narrow, channels), (narrow,), (channels, narrow), (channels,)]
        if all(a[: len(b)] == b and set(a[len(b) :]) <= {1} for a, b in zip(given, wanted, strict=True)):
            return
    raise UseError(f"attention weights {given} do not squeeze {channels} channels and excite them again")


def _fake(x, mask, weights, dense, collect_weight, collect_bias, attention, activation, backend) -> Tensor:
    return empty_like(x, collect_weight.shape[0], x.shape[2:])


def _flops(x, mask, weights, dense, collect_weight, collect_bias, attention, *_, out_val=None) -> int:
    more = x.shape[0] * (attention[0].numel() + attention[2].numel())
    return 2 * (block.multiply_adds(mask, weights, dense, collect_weight) + more)


register("attended_block", _run, schema=SCHEMA, fake=_fake, flops=_flops)
