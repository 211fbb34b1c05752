"""Norms, removable elements and costs of a hinged network as functions of the kept groups."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.spaces.group_sparsity import groups
from sparsemask.spaces.group_sparsity.compression.accounting import Accounting, Count
from sparsemask.spaces.group_sparsity.compression.removal import Removal
from sparsemask.spaces.group_sparsity.groups import GroupSet
from sparsemask.spaces.group_sparsity.pairs import groups_of, pairs_of
from sparsemask.spaces.group_sparsity.rules import Plan
from sparsemask.spaces.group_sparsity.tracing.graph import ChannelGraph, trace


class Reduction:
    """Group structure of a network; independent of its weights, valid for every network of the same shapes.

    Attributes:
        sets: the groups.
        graph: the channels.
        removal: from groups to elements.
        accounting: counts costs.
        pairs: names of the pairs.
        baseline: cost of the plain network by name: "multiply-adds" (as published: batch norms and activations count),
            "executed" (products alone), "params".

    Raises:
        UseError: the network has no groups.
    """

    def __init__(self, network: nn.Module, plan: Plan, shape: Sequence[int], baseline: Mapping[str, int]):
        self.plan, self.shape, self.baseline = plan, tuple(shape), dict(baseline)
        self.sets: tuple[GroupSet, ...] = groups_of(network, plan)
        if not self.sets:
            raise UseError(f"{type(network).__name__}: no groups of weights that could be removed")
        self.graph: ChannelGraph = trace(network, example(self.shape, network))
        self.removal = Removal(self.graph, self.sets)
        self.accounting = Accounting(network, self.graph, (1, *self.shape), branches=self.removal.branches)
        self.pairs = tuple(pairs_of(network))

    def norms(self, network: nn.Module) -> dict[str, np.ndarray]:
        """Return the norms of every set's groups, (count,) float64, by set name."""
        with torch.no_grad():
            return {s.name: groups.norms(network, s).double().cpu().numpy() for s in self.sets}

    def merged(self, gone: np.ndarray, merge: str | Iterable[str]) -> tuple[str, ...]:
        """Return the pairs that are merged when some elements are removed, none of those that are gone themselves.

        Args:
            gone: bool (graph.count,).
            merge: "auto": pairs for which that takes fewer multiply-adds; "plan": those of the rule; "none"; or names.
        """
        names: Iterable[str] = () if merge == "none" else merge
        if merge == "auto":
            names = self.accounting.chosen(gone)
        elif merge == "plan":
            names = self.plan.merge
        left = self.accounting.remaining_pairs(gone)
        return tuple(name for name in names if name in left)

    def cost(self, kept: Mapping[str, np.ndarray], merge: str | Iterable[str] = "auto") -> dict[str, int]:
        """Return the cost with only the `kept` groups, by the names of `baseline`."""
        gone = self.removal.gone(kept)
        return costs(self.accounting.count(gone, self.merged(gone, merge)))

    def ratio(self, kept: Mapping[str, np.ndarray], by: str, merge: str | Iterable[str] = "auto") -> float:
        """Return the cost `by` with only the `kept` groups, over the plain network's."""
        return self.cost(kept, merge)[by] / self.baseline[by]

    def whole(self, kept: Mapping[str, np.ndarray], merged: Iterable[str]) -> dict[str, np.ndarray]:
        """Return `kept` with all rows of merged pairs kept: they do not change the merged convolution's cost."""
        inner = {f"{name}.1" for name in merged}
        free = {s.name for s in self.sets if all(m.module in inner and m.dim == 1 for m in s.members)}
        return {name: np.ones_like(k) if name in free else np.asarray(k) for name, k in kept.items()}

    def partners(self) -> list[tuple[str, str]]:
        """Return corresponding sets of P1 and P2 (of the same block and size).

        Raises:
            UseError: they do not correspond one to one.
        """
        matrices = [s for s in self.sets if not s.branches]
        first, second = ([s for s in matrices if s.projection == p] for p in groups.PROJECTIONS)
        if not second or [s.count for s in first] != [s.count for s in second]:
            raise UseError("--same_ratio: this network's two kinds of groups do not match one by one")
        return [(a.name, b.name) for a, b in zip(first, second, strict=True)]


@dataclass(frozen=True)
class Hinged:
    """A network with its pairs, and its group structure."""

    network: nn.Module
    reduction: Reduction


def costs(counted: Count) -> dict[str, int]:
    """Counted costs by the names of :attr:`Reduction.baseline`."""
    return {"multiply-adds": counted.published, "executed": counted.multiply_adds, "params": counted.parameters}


def example(shape: Sequence[int], network: nn.Module) -> Tensor:
    """An input of zeros (1, *shape) on the network's device, of its type."""
    parameter = next(network.parameters())
    return torch.zeros(1, *shape, device=parameter.device, dtype=parameter.dtype)
