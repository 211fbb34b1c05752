"""The operator `sparsemask::attended_block`: a module's block, channel attention on its output, and its input added.

As one operator it never has to write the unscaled output (see :mod:`sparsemask.sparse.native.block`). For inference: it
has no gradients; where some are wanted :class:`sparsemask.sparse.SparseMaskBlock` and the attention are called in turn.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from sparsemask.sparse import backends, flops, operators
from sparsemask.sparse.checks import check_attention, check_block
from sparsemask.sparse.layout import empty_like, laid_out_like

Attention = tuple[Tensor, Tensor, Tensor, Tensor]


def factors(mean: Tensor, attention: Attention) -> Tensor:
    """sigmoid(excite(relu(squeeze(mean)))) of means (N, C): (N, C) in (0, 1). RCAN (arXiv 1807.02758), section 3.3.

    attention: weight (r, C) and bias of the squeezing layer, weight (C, r) and bias of the exciting one; trailing
    ones, as 1×1 convolutions have them, are fine.
    """
    squeeze, squeeze_bias, excite, excite_bias = attention
    narrow = F.relu(F.linear(mean, squeeze.flatten(1), squeeze_bias))
    return torch.sigmoid(F.linear(narrow, excite.flatten(1), excite_bias))


def compose(
    backend, x: Tensor, mask: Tensor, weights, dense, collect_weight, collect_bias, activation, attention
) -> Tensor:
    """x + a·y from a backend's block y."""
    arguments = (x, mask, weights, dense, collect_weight, collect_bias, activation)
    own = getattr(backend, "block", None)
    y = own(*arguments) if own else backends.compose_block(backend, *arguments)
    a = factors(y.flatten(2).mean(2), attention)
    return y.mul_(a.view(*a.shape, *[1] * (x.ndim - 2))).add_(x)


operators._library.define(
    "attended_block(Tensor x, Tensor mask, Tensor[] weights, Tensor dense, Tensor collect_weight, "
    "Tensor? collect_bias, Tensor[] attention, str activation, str backend) -> Tensor",
    tags=operators._tags,
)


def attended_block(x, mask, weights, dense, collect_weight, collect_bias, attention, activation, backend) -> Tensor:
    """What `sparsemask::attended_block` runs; attention: see :func:`factors`."""
    check_block(x, mask, weights, dense, collect_weight, collect_bias, activation)
    check_attention(x, collect_weight, attention)
    if not mask.numel():
        return empty_like(x, len(collect_weight), x.shape[2:])
    server = backends.able(backend, x)
    cast = lambda one: one if one is None else one.to(x.dtype)
    arguments = (x, mask, [cast(w) for w in weights], dense, cast(collect_weight), cast(collect_bias), activation)
    attention = tuple(cast(one) for one in attention)
    own = getattr(server, "attended_block", None)
    return laid_out_like(own(*arguments, attention) if own else compose(server, *arguments, attention), x)


operators._library.impl("attended_block", attended_block, "CompositeExplicitAutograd")


@torch.library.register_fake("sparsemask::attended_block")
def _fake(x, mask, weights, dense, collect_weight, collect_bias, attention, activation, backend) -> Tensor:
    return empty_like(x, collect_weight.shape[0], x.shape[2:])


@register_flop_formula(torch.ops.sparsemask.attended_block, get_raw=True)
def _flops(x, mask, weights, dense, collect_weight, collect_bias, attention, *_, out_val=None) -> int:
    more = x.shape[0] * (attention[0].numel() + attention[2].numel())
    return 2 * (flops.block_multiply_adds(mask, weights, dense, collect_weight) + more)
