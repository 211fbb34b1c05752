"""Masks of a sparsified network within milliseconds: measured, chosen, and measured again as a whole."""

from __future__ import annotations

import functools
import sys
from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from sparsemask.errors import say
from sparsemask.spaces.group_sparsity.shrinking.targets import Target
from sparsemask.spaces.sparse_conv.budget_calibration import meet_budget
from sparsemask.spaces.sparse_conv.mask_costs import LEAST, MaskBudget, measure_costs
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork
from sparsemask.spaces.sparsified.network import SparsifiedNetwork, begin
from sparsemask.timing import evaluating, timer

NEAR = 0.03
"""Relative distance to a budget at which it is met."""
_CORRECTIONS = 5
_MEASURING = 10.0  # seconds spent about on what masks cost
_SECONDS, _ROUNDS = 1.0, 5  # of each measurement of the whole


class _Images:
    """How networks that no space knows are measured: they take images, and skip by themselves."""

    def dense_form(self, network: MaskedNetwork) -> nn.Module:
        """The network that was given masks."""
        return cast(SparsifiedNetwork, network).network

    def size_words(self, shape: Sequence[int]) -> str:
        """As other networks of images."""
        count = f"{shape[0]} x " if shape[0] > 1 else ""
        return f"{count}{shape[-1]}x{shape[-2]}"


def meet_milliseconds(network: SparsifiedNetwork, example: Tensor, goal: Target, steps: int) -> None:
    """Start masks so that a call on the example takes a number of milliseconds on this machine.

    What the masks of each region cost and save is measured, those that cannot pay are left out, and the others started
    where the milliseconds are expected. The network is then timed as it will run, and what masks keep is corrected.

    Args:
        network: just built, in evaluation mode; changed in place. Its `report` is set.
        example: inputs like those to come.
        goal: milliseconds, or a share of them.
        steps: of the fit of mask branches.

    Raises:
        UseError: a budget that no masks reach, or that needs none.
    """
    words = f"budget {goal.amount:g} ms" if goal.unit == "ms" else f"budget {100 * goal.amount:g}%"
    costs = measure_costs(_Images(), network, example, _MEASURING)
    budget = MaskBudget.of(costs, goal.amount if goal.unit == "ms" else f"{100 * goal.amount}%", words)
    budget.prepare(network)
    begin(network, example, budget.keep, steps, budget.kept)
    keep, ms = _corrected(network, example, budget)
    lines = [*budget.lines(), f"{words}: {ms:.3g} ms measured, masks keep {keep:.2f}"]
    if abs(ms / budget.most - 1) > NEAR:
        floor = ms > budget.most and keep <= LEAST
        why = f"masks keep the least there is, {LEAST:g}" if floor else "no nearer step was found"
        lines[-1] = f"{words}: missed, {ms:.3g} ms measured of {budget.most:.3g}: {why}"
        say(lines[-1], sys.stderr)
    network.report = "\n".join(lines)


def _corrected(network: SparsifiedNetwork, example: Tensor, budget: MaskBudget) -> tuple[float, float]:
    """Change what masks keep until the whole network's time meets the budget; returns (kept fraction, milliseconds)."""
    slope = sum(budget.costs.modules[name][1] for name in budget.masked)
    keep = budget.keep
    tried: list[tuple[float, float]] = []
    for _ in range(_CORRECTIONS):
        ms = _milliseconds(network, example, budget.costs.machine.threads)
        tried.append((keep, ms))
        if abs(ms / budget.most - 1) <= NEAR:
            break
        if len(tried) > 1 and (keep - tried[-2][0]) * (ms - tried[-2][1]) > 0:  # a secant, where it rises
            slope = (ms - tried[-2][1]) / (keep - tried[-2][0])
        wanted = min(1.0, max(LEAST, keep + (budget.most - ms) / slope))
        if wanted == keep:
            break
        _keep(network, example, budget, wanted)
        keep = wanted
    best = min(tried, key=lambda pair: abs(pair[1] - budget.most))
    if best[0] != keep:
        _keep(network, example, budget, best[0])
    return best


def _keep(network: SparsifiedNetwork, example: Tensor, budget: MaskBudget, keep: float) -> None:
    with evaluating(network):
        meet_budget(network, example, keep, budget.kept)


def _milliseconds(network: SparsifiedNetwork, example: Tensor, threads: int) -> float:
    call = {0: functools.partial(network, example)}
    with evaluating(network):
        return timer(example.device, threads, _SECONDS)(call, _ROUNDS)[0][0]
