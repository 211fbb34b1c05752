"""Networks pruned by Torch-Pruning to a share of their multiply-adds: the other side of comparisons."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sparsemask import costs

_TRIES = 8  # shares of channels that it is asked for


def tensors(output: object) -> list[Tensor]:
    """The tensors of an output."""
    parts = [output] if isinstance(output, Tensor) else list(output)  # type: ignore[call-overload]
    return [part for part in parts if isinstance(part, Tensor)]


def pruned(
    network: nn.Module,
    x: Tensor,
    target: float,
    importance: Callable[[], Any] | None = None,
    prepare: Callable[[nn.Module], object] | None = None,
    **options: Any,
) -> tuple[nn.Module, float]:
    """Prune a copy by the share of channels that leaves the wanted share of the multiply-adds.

    Args:
        network: not changed.
        x: an example.
        target: share of the multiply-adds, as torch counts them.
        importance: makes the importance; None: L2 norm over the layers of a group.
        prepare: called with each copy before it is pruned, to give its parameters gradients for instance.
        options: of the pruner, such as `global_pruning`.

    Returns:
        The nearest network of eight, and the seconds of processor time in which its dependencies were found.
    """
    import torch_pruning as tp

    whole = costs.multiply_adds(network, x)
    with torch.no_grad():
        sizes = {t.shape[1] for t in tensors(network(x))}
    low, high, best, tracing = 0.0, 0.95, None, 0.0
    for _ in range(_TRIES):
        ratio = (low + high) / 2
        small = copy.deepcopy(network)
        if prepare is not None:
            prepare(small)
        layers = [m for m in small.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        ends = [m for m in layers if m.weight.shape[0] in sizes][-1:]  # the last layer makes the outputs
        attentions = [m for m in small.modules() if hasattr(m, "qkv") and hasattr(m, "num_heads")]
        begun = time.thread_time()
        pruner = tp.pruner.BasePruner(
            small,
            x,
            importance=importance() if importance else tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio,
            ignored_layers=ends,
            num_heads={m.qkv: m.num_heads for m in attentions},
            **options,
        )
        tracing = tracing or time.thread_time() - begun
        pruner.step()
        for module in attentions:
            module.num_heads = pruner.num_heads[module.qkv]
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)
        small.zero_grad(set_to_none=True)
        with torch.no_grad():
            small.eval()(x)  # it must run
        share = costs.multiply_adds(small, x) / whole
        if best is None or abs(share - target) < abs(best[0] - target):
            best = share, small
        if abs(share - target) < 0.003:
            break
        low, high = (ratio, high) if share > target else (low, ratio)
    return best[1], tracing
