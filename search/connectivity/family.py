"""The family of connectivity searches: its flags, what is trained, and what a finished search leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsemask import report as page
from sparsemask import spaces, tasks
from sparsemask.config import RunConfig, flag
from sparsemask.costs import measure
from sparsemask.engine import Method
from sparsemask.engine.randomness import seed_all
from sparsemask.engine.records import read_rows
from sparsemask.errors import UseError, say
from sparsemask.families import Built, TrainingFamily
from sparsemask.options import fraction, natural, positive, rate
from sparsemask.pictures import draw_architecture, draw_weight_history, draw_weights
from sparsemask.search.connectivity.latency import LatencySearch
from sparsemask.search.connectivity.one_shot import OneShotSearch
from sparsemask.search.connectivity.one_shot_front import OneShotBuilt, build_elastic, finish_front
from sparsemask.search.connectivity.published import ConnectivitySearch
from sparsemask.spaces.connectivity.budget import BudgetSection, cost_side, measured_ms, open_costs
from sparsemask.spaces.connectivity.budget_rules import prune_to_budget
from sparsemask.spaces.connectivity.named_masks import available_masks, is_wider
from sparsemask.spaces.connectivity.prune_rules import prune_report
from sparsemask.spaces.pretrained import (
    distill_flag,
    encoder_form,
    encoder_weights,
    open_teacher,
    teacher_flag,
    temperature_flag,
)
from sparsemask.training_setup import Context
from sparsemask.weights import load_strictly

_ONE_SHOT = "one-shot search"
METHODS = ("published", "latency", "one-shot")


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectivitySearchSection(BudgetSection):
    """How connection weights are learnt."""

    title = "connectivity search"
    inherited_last = True
    method: str | None = flag(
        None,
        choices=METHODS,
        help="published: the sparse loss; latency: within a budget; one-shot: a front of scores and costs (default: "
        "latency with a budget, else published)",
    )
    cost_size: int | None = flag(
        None,
        positive,
        group="budget",
        metavar="SIDE",
        help="side of the picture that costs are of, where networks will see others than they are trained on (default: "
        "--crop_size)",
    )
    sparse: float = flag(0.01, rate, help="factor of the sparse loss (default: 0.01)")
    noise: float = flag(0.1, rate, help="standard deviation of the weights' noise (default: 0.1)")
    mask_lr_mult: float = flag(10.0, rate, help="factor on --lr for the connection weights (published: 10)")
    mask_warmup: int = flag(
        0,
        natural,
        help="steps before the connection weights move: a random decoder's gradients say nothing of them (default: 0)",
    )
    thres: float = flag(0.001, fraction, help="threshold of the count shown (default: 0.001)")
    decoder_space: str = flag(
        "wide",
        choices=("wide", "published"),
        group=_ONE_SHOT,
        help="wide: every stage's operation and width, the output stage and a context block too (default: wide)",
    )
    first_decoder: str | None = flag(
        None,
        choices=tuple(name for name in available_masks() if name != "random-k"),
        group=_ONE_SHOT,
        help="named mask that is trained with the encoder in the first three quarters of a run (default: fpn; in the "
        "published space unet)",
    )
    masks_a_step: int = flag(2, positive, group=_ONE_SHOT, help="decoders trained in a step (default: 2)")
    tune_steps: int = flag(
        40, natural, group=_ONE_SHOT, help="steps that a decoder is trained alone before it is scored (default: 40)"
    )
    candidates: int = flag(80, positive, group=_ONE_SHOT, help="decoders that are scored for the front (default: 80)")
    finalists: int = flag(
        16, natural, group=_ONE_SHOT, help="the best of them, which are trained and scored again (default: 16; 0: none)"
    )
    final_times: int = flag(4, positive, group=_ONE_SHOT, help="factor on --tune_steps for the finalists (default: 4)")
    final_draws: int = flag(
        1,
        positive,
        group=_ONE_SHOT,
        help="draws of the weights that finalists begin with; the mean of the scores counts (default: 1)",
    )
    refine: int = flag(
        0,
        natural,
        group=_ONE_SHOT,
        help="further finalists, each one change from one of the best so far (default: 0, none)",
    )
    halving: int = flag(
        0,
        natural,
        group=_ONE_SHOT,
        metavar="N",
        help="train N candidates whole at last, encoder included, as retraining does: the best found, and pyramids; "
        "then the better half again for twice as many steps, and so on (default: 0, none)",
    )
    halving_steps: int = flag(
        200, positive, group=_ONE_SHOT, help="steps of the longest trainings of --halving (default: 200)"
    )
    halving_draws: int = flag(
        2,
        positive,
        group=_ONE_SHOT,
        help="trainings of each candidate in the last round of --halving; the mean counts (default: 2)",
    )
    front_workers: int = flag(2, positive, group=_ONE_SHOT, help="processes that score candidates (default: 2)")
    held_out: float = flag(
        0.15,
        fraction,
        group=_ONE_SHOT,
        help="share of the training pictures that candidates are scored on (default: 0.15)",
    )
    teacher: str = teacher_flag()
    distill: float = distill_flag()
    temperature: float = temperature_flag()

    def check(self) -> None:
        """One budget at most, and a method that knows budgets."""
        BudgetSection.check(self)
        if self.method == "published" and self.budget is not None:
            raise UseError(f"{self.budget.flag}: --method published knows no budget; take --method latency or one-shot")
        if not self.held_out:
            raise UseError("--held_out 0: candidates are scored on pictures that are not trained on")
        if self.method == "latency" and self.budget is None:
            raise UseError("--method latency: needs --budget_ms or --budget_macs")
        if self.decoder_space == "published" and self.first_decoder and is_wider(self.first_decoder):
            raise UseError(f"--first_decoder {self.first_decoder}: not of the published space (--decoder_space wide)")

    @property
    def way(self) -> str:
        """The method, which a budget implies where none is named."""
        return self.method or ("published" if self.budget is None else "latency")


class ConnectivitySearchFamily(TrainingFamily[Built]):
    """The fully dense network and its connection weights."""

    verb = "search"
    section = ConnectivitySearchSection

    def resolve(self, config: RunConfig, given: Mapping[str, Any]) -> RunConfig:
        """Settle the method and the budget, and refuse one below what any mask costs."""
        section = config.family
        ours = {name for name, rule in section.flags().items() if rule.group == _ONE_SHOT}
        if section.way != "one-shot" and (others := sorted(ours & given.keys())):
            raise UseError(f"--{others[0]}: only --method one-shot knows it, not --method {section.way}")
        changes: dict[str, Any] = {"method": section.way}
        if (budget := section.budget) is not None:
            network = tasks.get(config.data.task, config.replace(**encoder_form(config))).config
            costs = open_costs(network, unit=budget.unit)
            settled = budget.resolved(costs)
            settled.check(costs, section.way == "one-shot" and section.decoder_space == "wide")
            if budget.relative:
                say(f"budget: {budget.flag} of the dense network's, {settled.text()}")
                changes["budget_ms" if budget.unit == "ms" else "budget_macs"] = settled.most
        return config.replace(**changes)

    def build(self, context: Context) -> Built:
        """The fully dense network: from its checkpoint's configuration, or with pretrained encoder weights."""
        weights, changes = encoder_weights(context)
        config = context.config.replace(**changes)
        teacher, entries = open_teacher(context)
        seed_all(config.run.seed)
        if config.family.way == "one-shot":
            built = replace(build_elastic(context, config, changes), extra=entries, teacher=teacher)
            if weights is not None:
                load_strictly(built.model.backbone, weights.state, f"encoder '{config.network.backbone_name}'")
            return built
        model = spaces.get(config.network.space).supernet({**config, "noise_std": config.family.noise})
        if weights is not None:
            load_strictly(model.backbone, weights.state, f"encoder '{config.network.backbone_name}'")
        return Built(model, entries, changes, teacher=teacher)

    def method(self, context: Context, built: Built) -> Method:
        """Network and connection weights together, within the budget if there is one."""
        config, budget = context.config, context.config.family.budget
        if isinstance(built, OneShotBuilt) and built.decoders is not None:
            return OneShotSearch(config, built.decoders)
        if config.family.way == "published" or budget is None:
            return ConnectivitySearch(config)
        return LatencySearch(config, open_costs(config, context.run, unit=budget.unit), budget)

    def finish(self, context: Context, built: Built, result: dict) -> int:
        """Draw the weights; measure and draw the network that pruning would give."""
        config, run, model = context.config, context.run, built.model
        if isinstance(built, OneShotBuilt):
            return finish_front(context, built, result)
        weights = [w.detach().cpu().numpy() for w in model.raw_weights()]
        budget, entries = config.family.budget, {}
        report = prune_report(weights, config.family.thres)
        if budget is not None and not report.problem:
            costs = open_costs(config, run, unit=budget.unit)
            report = prune_to_budget(weights, config.family.thres, budget, costs)
            entries = {"budget": {"unit": budget.unit, "most": budget.most, "predicted": report.cost}}
        draw_weights(weights, run.pictures / "weights.png", config.family.thres)
        rows = read_rows(run.history)
        history = [row["step"] for row in rows], np.array([row["weights"] for row in rows])
        draw_weight_history(history, run.pictures / "weight_history.png", config.family.thres)
        context.draw_training(model)
        if not report.problem:
            strides, channels = model.backbone.strides, model.backbone.channels
            draw_architecture(report.mask, run.pictures / "architecture.png", strides, channels)
            network = spaces.get(config.network.space).network(report.mask, config)
            network.to(context.arithmetic.device, context.arithmetic.parameters)
            side = cost_side(config)
            cost = measure(network, (1, 3, side, side), repeats=10)
            if entries:
                entries["budget"]["measured_ms"] = measured_ms(network, side, context.arithmetic.device)
            run.note(
                kept=page.names_of(report.mask),
                strides=[int(s) for s in strides],
                channels=[int(c) for c in channels],
                **page.cost_entries(cost, side),
                **entries,
            )
        line = f"searched: {context.metric_text(result)}; {report.lines()[0]}"
        context.announce([line, *report.lines()[1:][-1:]] if entries else [line], then="prune")
        return 0


FAMILY = ConnectivitySearchFamily()
