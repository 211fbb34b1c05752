"""Networks as they are timed and run: batch norms folded, borders precomputed, the faster memory format."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import nn

from sparsemask.inference import optimize_for_inference
from sparsemask.spaces.group_sparsity.border import fix_borders
from sparsemask.spaces.group_sparsity.folding import fold_norms
from sparsemask.timing import compare, make_inputs


def folded(network: nn.Module, example: torch.Tensor) -> nn.Module:
    """A copy in evaluation mode, batch norms folded into convolutions wherever they follow one."""
    made = copy.deepcopy(network).eval()
    fix_borders(made, example)
    return fold_norms(made, example)


def fast_form(network: nn.Module, shape: Sequence[int], batch: int, device, compiled: bool = False):
    """The network made fast for inputs (batch, *shape): a callable of one; its `form` says how.

    compiled: measure the compiled form too and take the faster.
    """
    example = make_inputs((batch, *shape), device)[0]
    with torch.no_grad():
        ready = folded(network.to(device), example)
    return optimize_for_inference(ready, example, compiled=None if compiled else False), example


def compare_times(
    networks: dict[str, nn.Module], shape: Sequence[int], batch: int, device, compiled: bool = False, rounds: int = 9
) -> dict[str, float]:
    """Median milliseconds of each network on a batch of inputs, each in its fast form, timed in turn."""
    forms = {name: fast_form(network, shape, batch, device, compiled) for name, network in networks.items()}
    calls = {name: (lambda form=form, x=x: form(x)) for name, (form, x) in forms.items()}
    return compare(calls, rounds=rounds, device=device)


__all__ = ["compare_times", "fast_form", "folded"]
