"""A search within a budget: the expected cost of the relaxed masks is a term of the loss.

The term is a strength times expected cost over the cost of the first weights. The strength is the dual variable of the
constraint "expected cost at most the target" and moves by gradient ascent: it grows while the cost is above the target
and falls otherwise, so that it ends near the smallest one that meets the budget (an augmented Lagrangian: Nocedal and
Wright, Numerical Optimization, section 17.3). The target falls from the cost at the beginning to the budget, which it
reaches after `ARRIVED` of the run. Of the sparse loss the part that makes weights hard remains; its other part, which
wants two inputs a stage, gives way to the budget.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from sparsemask.config import RunConfig
from sparsemask.masks import DOWN, why_unusable
from sparsemask.search.connectivity.published import ConnectivitySearch
from sparsemask.search.losses import weight_entropy
from sparsemask.spaces.connectivity.budget import Budget, Costs
from sparsemask.spaces.connectivity.prune_rules import prune_connectivity

ARRIVED = 0.6  # of the run: from here on the target is the budget itself
ASCENT = 10.0  # by how much the strength rises in a run whose cost is e times the target
STEEPNESS, _STRONGEST = 4.0, 4.0  # the strength is multiplied by 1 + STEEPNESS * excess, between 0 and this
_HARDENING = (0.3, 0.7)  # of the run: where the entropy's factor goes from 0 to 1


class LatencySearch(ConnectivitySearch):
    """Train the fully dense network and its connection weights together, within a budget.

    Args:
        config: of the run.
        costs: of the backbone, on this machine.
        budget: the most that the network found may cost.
    """

    def __init__(self, config: RunConfig, costs: Costs, budget: Budget):
        super().__init__(config)
        self.costs, self.budget = costs, budget
        self.strength, self.excess = 0.0, 0.0
        self._first: float | None = None

    def expected(self, weights: Sequence[torch.Tensor]) -> torch.Tensor:
        """The expected cost of weights, without their noise: it would add to those at 0 alone."""
        return self.costs.expected([w / 2 for w in weights], self.budget.unit)

    def first(self, model: torch.nn.Module) -> float:
        """The expected cost of a search's first weights, which are all 1."""
        if self._first is None:
            with torch.no_grad():
                self._first = float(self.expected([torch.ones_like(w) for w in model.raw_weights()]))
        return self._first

    def target(self, step: int, first: float) -> float:
        """The cost wanted at a step: from that of the first weights to the budget, by equal factors."""
        moving = max(1.0, ARRIVED * self.steps - self.warmup)
        left = min(1.0, max(0.0, 1 - (step - self.warmup) / moving))
        return self.budget.most * max(1.0, first / self.budget.most) ** left

    def penalty(self, model: torch.nn.Module, step: int) -> tuple[torch.Tensor | None, dict]:
        """The strength times the relative cost, and λ times the weights' entropy."""
        cost, first = self.expected(model.raw_weights()), self.first(model)
        excess = math.log(float(cost.detach()) / self.target(step, first))
        self.excess = min(1.0, max(-1.0, excess)) if step >= self.warmup else 0.0
        low, high = (share * self.steps for share in _HARDENING)
        hardening = min(1.0, max(0.0, (step - low) / max(1.0, high - low)))
        entropy = sum(weight_entropy(w) for w in model.connection_weights())
        metrics = {
            "loss_entropy": float(entropy.detach()),
            "expected_ms" if self.budget.unit == "ms" else "expected_macs": float(cost.detach()),
            "budget_strength": self.strength,
        }
        if step < self.warmup:
            return None, metrics
        pull = self.strength * min(_STRONGEST, max(0.0, 1 + STEEPNESS * excess))
        return pull * cost / first + self.sparse * hardening * entropy, metrics

    def after_step(self, model: torch.nn.Module) -> None:
        """Keep the weights in [0, 2] and a network among them, and take the dual variable's step."""
        super().after_step(model)
        weights = model.raw_weights()
        if why_unusable(prune_connectivity(weights, self.thres, rm_duplicate=False, rm_subset=False)):
            with torch.no_grad():  # momentum has carried the last ones away: the cheapest input comes back
                weights[-1][len(weights) - 1, DOWN] = 1.0
        self.strength = max(0.0, self.strength + ASCENT / max(1, self.steps) * self.excess)

    def state(self) -> dict:
        """The strength so far."""
        return {"strength": self.strength}

    def restore(self, state: dict) -> None:
        """Go on from what `state` once returned."""
        self.strength = float(state["strength"])
