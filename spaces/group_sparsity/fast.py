"""Networks prepared for timing and inference: batch norms folded, borders precomputed, the faster memory format."""

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
    """Return a copy in evaluation mode, batch norms folded into the convolutions before them, borders precomputed."""
    result = copy.deepcopy(network).eval()
    fix_borders(result, example)
    return fold_norms(result, example)


def fast_form(network: nn.Module, shape: Sequence[int], batch: int, device, compiled: bool = False):
    """Optimise a network for inputs of one shape.

    Args:
        network: moved to `device`.
        shape: (C, H, W).
        batch: inputs at once.
        device: to run on.
        compiled: also measure the compiled form and take the faster one.

    Returns:
        A callable of one input, whose `form` names the chosen form, and an example input.
    """
    example = make_inputs((batch, *shape), device)[0]
    with torch.no_grad():
        ready = folded(network.to(device), example)
    return optimize_for_inference(ready, example, compiled=None if compiled else False), example


def compare_times(
    networks: dict[str, nn.Module], shape: Sequence[int], batch: int, device, compiled: bool = False, rounds: int = 9
) -> dict[str, float]:
    """Time networks in their fast forms, in turn.

    Args:
        networks: by name.
        shape: (C, H, W) of an input.
        batch: inputs at once.
        device: to run on.
        compiled: also consider compiled forms.
        rounds: timed calls of each.

    Returns:
        Median milliseconds for a batch, by name.
    """
    forms = {name: fast_form(network, shape, batch, device, compiled) for name, network in networks.items()}
    calls = {name: (lambda form=form, x=x: form(x)) for name, (form, x) in forms.items()}
    return compare(calls, rounds=rounds, device=device)


__all__ = ["compare_times", "fast_form", "folded"]
