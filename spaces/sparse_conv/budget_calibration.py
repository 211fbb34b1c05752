"""Calibrate masks to a budget before they are fixed: one common shift of their logits."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from sparsemask.engine import distributed
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork
from sparsemask.spaces.sparse_conv.masking import blocks, channel_logits, mean_kept
from sparsemask.timing import evaluating

_HALVINGS = 12
_SPAN, _LOCATION_HALVINGS = 50.0, 20  # of location masks, whose logits may be large


def meet_budget(
    model: nn.Module, inputs, keep: float, measure: Callable[..., Tensor] = mean_kept, left: Collection[str] = ()
) -> float:
    """Shift the logits of all masks by one number, so that the kept fraction meets a budget.

    Training ends near the budget, where the loss on the kept fraction and the task's loss balance. What is shifted are
    the network's :meth:`~sparsemask.spaces.sparse_conv.masked_network.MaskedNetwork.budget_logits`, or else all channel
    logits, dense against sparse, which preserves the order of the channels and leaves data masks as they are. If the
    budget is out of reach, nothing is shifted.

    Args:
        model: changed in place.
        inputs: a batch on which the kept fraction is measured, with hard masks; each process has its own.
        keep: kept fraction in [0, 1).
        measure: (model, hard=True), the kept fraction of the last forward pass.
        left: names of blocks whose channels stay as they are.

    Returns:
        The shift; 0 if the budget is out of reach.
    """
    dense = model.budget_logits() if isinstance(model, MaskedNetwork) else []
    span, halvings = _SPAN, _LOCATION_HALVINGS
    if not dense:
        logits = [channel_logits(block) for name, block in blocks(model).items() if name not in left]
        dense = [logit[..., 0] for logit in logits]
        span = max(float((logit[..., 0] - logit[..., 1]).detach().abs().max()) for logit in logits)
        halvings = _HALVINGS
    before = [logit.detach().clone() for logit in dense]

    @torch.no_grad()
    def kept(shift: float) -> float:
        for logit, start in zip(dense, before, strict=True):
            logit.copy_(start + shift)
        model(inputs)
        fraction = measure(model, hard=True).detach().double().reshape(1)
        sums = distributed.total(torch.cat([fraction, torch.ones_like(fraction)])).tolist()
        return sums[0] / sums[1]

    with evaluating(model):
        down = kept(0.0) > keep
        end = -span if down else span
        if (kept(end) > keep) == down:  # out of reach
            kept(0.0)
            return 0.0
        low, high = sorted((0.0, end))
        for _ in range(halvings):
            middle = (low + high) / 2
            low, high = (low, middle) if kept(middle) > keep else (middle, high)
        ends = {shift: abs(kept(shift) - keep) for shift in (low, high)}
        best = min(ends, key=ends.get)
        kept(best)
    return best
