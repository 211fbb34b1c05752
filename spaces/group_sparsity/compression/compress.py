"""Build a smaller network that computes the same function as the masked one.

The published code drops zero channels together with the constants that batch norm makes of zero (not covered by Li et
al. 2020, arXiv 2003.08935, section 3.4); here these constants are folded into the layers that read them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sparsemask.errors import choose
from sparsemask.spaces.group_sparsity.compression import constants
from sparsemask.spaces.group_sparsity.compression.border import add_bias, add_border
from sparsemask.spaces.group_sparsity.compression.constants import Corrections, Readings
from sparsemask.spaces.group_sparsity.compression.removal import Kept, Removal
from sparsemask.spaces.group_sparsity.groups import GroupSet
from sparsemask.spaces.group_sparsity.tracing.graph import ChannelGraph
from sparsemask.spaces.group_sparsity.tracing.record import tensors_in
from sparsemask.timing import evaluating

FOLDS = ("exact", "interior", "none")


def compress(
    network: nn.Module, graph: ChannelGraph, sets: Sequence[GroupSet] | Removal, kept: Kept, fold: str = "exact"
) -> nn.Module:
    """Remove the dropped groups from a copy of a network.

    Args:
        network: the one that `graph` was traced from, with its pairs, or one of the same structure and shapes; not
            changed.
        graph: its channels.
        sets: the groups, or a :class:`Removal` made of them.
        kept: by set name, bool (count,); sets that are not named keep all groups. A layer that would lose all of its
            channels keeps one, zeroed.
        fold: treatment of the constants that dropped channels leave after biases, batch norms and activations.
            "exact": the result equals the network whose dropped groups (and their biases) are zero, at any input
            size; under zero padding a convolution gets a small `border`
            (:mod:`sparsemask.spaces.group_sparsity.compression.border`). A channel whose constant cannot be folded
            (it varies between positions, for instance) stays, zeroed.
            "interior": constants go into biases and running means alone, so that outputs differ near the border.
            "none": constants are dropped, as in the published code; for networks that are trained further. Only then
            channels go over which statistics are taken (`statistics="free"` of the trace).

    Returns:
        A new network.

    Raises:
        UseError: masks of another network, or an unknown `fold`.
        RuntimeError: the result does not reproduce the masked network on a random input ("exact"); a bug.
    """
    removal = sets if isinstance(sets, Removal) else Removal(graph, sets)
    return remove_groups(network, removal, kept, fold).network


@dataclass(frozen=True)
class Compressed:
    """A smaller network, and the numbers of the elements that were removed, int64 (R,)."""

    network: nn.Module
    removed: np.ndarray


@torch.no_grad()
def remove_groups(network: nn.Module, removal: Removal, kept: Kept, fold: str = "exact") -> Compressed:
    """Do as :func:`compress`, and tell which channels are gone: those whose constants cannot be folded stay."""
    choose(fold, FOLDS, "fold")
    graph = removal.graph
    small = removal.zero_(copy.deepcopy(network), kept)
    with evaluating(small):
        gone, corrections, readings = _foldable(small, graph, removal.gone(kept), fold)
        _apply(small, removal, corrections, gone)
        if readings is not None and fold == "exact":
            _check(readings.inputs.run(small), readings.output)
    return Compressed(small, np.flatnonzero(gone))


def _foldable(
    masked: nn.Module, graph: ChannelGraph, gone: np.ndarray, fold: str
) -> tuple[np.ndarray, Corrections, Readings | None]:
    """Of the elements in `gone`, bool (count,), those that can be removed; where constants go; the last reading."""
    if fold == "none":
        return gone, Corrections(), None
    gone, readings = gone & ~graph.approximate, None
    while gone.any():
        readings = constants.read(masked, graph, gone)
        corrections = constants.corrections(masked, graph, gone, readings, fold)
        if not corrections.refused:
            return gone, corrections, readings
        for elements in corrections.refused:
            gone[elements] = False
    return gone, Corrections(), readings


@torch.no_grad()
def removable(network: nn.Module, removal: Removal, fold: str = "exact") -> dict[str, np.ndarray]:
    """Tell which groups are worth dropping: those whose channels can really be removed.

    Constants that vary between positions, after an average pool with padding, say, cannot be folded; their channels
    would stay, zeroed, and cost what they did. It is found by dropping one random half of the groups, then the other.

    Args:
        network: the traced one or one of the same structure and shapes; not changed.
        removal: the groups.
        fold: as for :func:`compress`.

    Returns:
        By set name, bool (count,).
    """
    choose(fold, FOLDS, "fold")
    generator, graph = np.random.default_rng(0), removal.graph
    halves = {s.name: generator.permutation(s.count) < (s.count + 1) // 2 for s in removal.sets}
    stays = np.zeros(graph.count, dtype=bool)
    for kept in ({name: ~half for name, half in halves.items()}, halves):
        masked = removal.zero_(copy.deepcopy(network), kept)
        planned = removal.gone(kept)
        with evaluating(masked):
            stays |= planned & ~_foldable(masked, graph, planned, fold)[0]
    return {s.name: ~removal.touched(s, stays) for s in removal.sets}


def _apply(network: nn.Module, removal: Removal, corrections: Corrections, gone: np.ndarray) -> None:
    """Remove the channels and fold their constants into the remaining layers, in place."""
    graph = removal.graph
    for name, amount in corrections.means.items():
        network.get_buffer(name).sub_(amount.to(network.get_buffer(name)))
    removal.remove(network, gone)
    for name, amount in corrections.biases.items():
        module = network.get_submodule(name)
        add_bias(module, _remaining(graph, name, amount, gone).to(module.weight))
    for name, border in corrections.borders.items():
        module, out = network.get_submodule(name), int(graph.node(name).transposed)
        add_border(module, _remaining(graph, name, border, gone, out).to(module.weight))


def _remaining(graph: ChannelGraph, name: str, value: Tensor, gone: np.ndarray, dim: int = 0) -> Tensor:
    """The entries of a module's remaining output channels, which lie along `dim`."""
    remaining = torch.from_numpy(np.flatnonzero(~gone[graph.elements(name, 0)])).to(value.device)
    return value.index_select(dim, remaining)


def _check(output, expected) -> None:
    """Raise RuntimeError where outputs differ; numbers of classes and the like may, at a tie."""
    for a, b in zip(tensors_in(output), tensors_in(expected), strict=True):
        same = a.shape == b.shape
        if same and a.is_floating_point() and a.numel():
            tolerance = max(1e-3, 8 * torch.finfo(a.dtype).eps)
            same = (a - b).abs().max() <= tolerance * (1 + b.abs().max())
        if not same:
            raise RuntimeError("the compressed network does not do what the masked one does")
