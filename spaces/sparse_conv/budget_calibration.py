"""Where masks are fixed before a run is over: the channel masks' common threshold that meets the budget."""

from __future__ import annotations

import torch
from torch import nn

from sparsemask.engine import distributed
from sparsemask.spaces.sparse_conv.masking import blocks, channel_logits, mean_kept
from sparsemask.timing import evaluating

_HALVINGS = 12


def meet_budget(model: nn.Module, inputs, keep: float) -> float:
    """Shift all channel logits, dense against sparse, by one number, so that `keep` is kept; returns that number.

    The loss on the kept fraction presses towards a budget and the task's loss back: they come to rest beside it. What
    they have ordered stays in order. Data masks stay as they are; where they put the budget out of reach, all stays.

    Args:
        inputs: a batch that the kept fraction is measured on, with hard masks; each process has its own.
        keep: kept fraction in [0, 1).
    """
    logits = [channel_logits(block) for block in blocks(model).values()]
    dense = [one[..., 0] for one in logits]
    span = max(float((one[..., 0] - one[..., 1]).detach().abs().max()) for one in logits)
    before = [one.detach().clone() for one in dense]

    @torch.no_grad()
    def kept(shift: float) -> float:
        for one, was in zip(dense, before, strict=True):
            one.copy_(was + shift)
        model(inputs)
        found = mean_kept(model, hard=True).detach().double().reshape(1)
        both = distributed.total(torch.cat([found, torch.ones_like(found)])).tolist()
        return both[0] / both[1]

    with evaluating(model):
        down = kept(0.0) > keep
        end = -span if down else span
        if (kept(end) > keep) == down:  # out of reach
            kept(0.0)
            return 0.0
        low, high = sorted((0.0, end))
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            low, high = (low, middle) if kept(middle) > keep else (middle, high)
        ends = {shift: abs(kept(shift) - keep) for shift in (low, high)}
        best = min(ends, key=ends.get)
        kept(best)
    return best
