"""How much time layers take for their multiply-adds, by a roofline model of one processor core.

The model (Williams, Waterman and Patterson, *Roofline*, CACM 2009) counts what is computed and what is moved: weights,
which come from memory in every run, and features, most of which are still in a cache. It needs no run of the network
and says the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sparsemask.spaces.group_sparsity.compression.accounting import Products
from sparsemask.spaces.group_sparsity.shrinking.channels import Channels
from sparsemask.spaces.group_sparsity.tracing.graph import ChannelGraph
from sparsemask.spaces.group_sparsity.tracing.record import Node, Value

# Multiply-adds that a core with vectors of 256 or 512 bits does while it moves one number of four bytes.
_WEIGHT, _FEATURE = 32, 6
_SHARE = 0.7  # of the channels that stay at middling density: half of the multiply-adds, roughly
_LEAST, _MOST = 0.5, 2.0  # times the middling density


def shares(graph: ChannelGraph, channels: Sequence[Channels]) -> dict[str, float]:
    """Shares of channels that stay, so that layers lose the more, the more time they take for a multiply-add.

    Args:
        graph: of the network for one input, whose sizes are taken.
        channels: those that may be removed.

    Returns:
        By name of the first layer that makes a set's channels: a share above 0 and below 1, a policy for
        :class:`sparsemask.spaces.group_sparsity.shrinking.allocation.Allocation`.
    """
    set_of = np.full(graph.count, len(channels))
    for number, c in enumerate(channels):
        set_of[c.elements] = number
    computed, moved = np.zeros(len(channels) + 1), np.zeros(len(channels) + 1)
    for node in graph.all_nodes:
        features = (_size(value) for value in (*node.inputs, *node.outputs) if value.varies)
        moved[_sets(node, set_of)] += _FEATURE * sum(features)
    counts = Products(graph).count()
    products = graph.shape[0] * counts.multiply_adds  # of the whole batch, as features are
    for node, weights, multiply_adds in zip(graph.nodes, counts.weights, products, strict=True):
        sets = _sets(node, set_of)
        computed[sets] += multiply_adds
        moved[sets] += _WEIGHT * weights
    density = 1 + moved / np.maximum(computed, 1)
    middling = (density * computed)[:-1].sum() / max(computed[:-1].sum(), 1)
    times = np.clip(density / max(middling, 1), _LEAST, _MOST)
    return {c.makers[0].module: float(_SHARE ** times[number]) for number, c in enumerate(channels)}


def _sets(node: Node, set_of: np.ndarray) -> np.ndarray:
    """The sets whose channels an operator reads or makes, each once."""
    lines = [elements for value in (*node.inputs, *node.outputs) if value.varies for elements in value.axes.values()]
    return np.unique(set_of[np.concatenate(lines)]) if lines else np.zeros(0, np.int64)


def _size(value: Value) -> int:
    return int(np.prod(value.shape, dtype=np.int64))
