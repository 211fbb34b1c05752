"""The family of connectivity searches: its flags, what is trained, and what a finished search leaves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsemask import report as page
from sparsemask import run_summary, spaces
from sparsemask.config import RunConfig, flag
from sparsemask.costs import measure
from sparsemask.engine import Method
from sparsemask.engine.randomness import seed_all
from sparsemask.engine.records import read_rows
from sparsemask.errors import UseError
from sparsemask.families import Built, TrainingFamily
from sparsemask.options import Parser, fraction, natural, rate
from sparsemask.pictures import draw_architecture, draw_weight_history, draw_weights
from sparsemask.search.connectivity.latency import LatencySearch
from sparsemask.search.connectivity.published import ConnectivitySearch
from sparsemask.spaces.connectivity.budget import BudgetSection, measured_ms, open_costs
from sparsemask.spaces.connectivity.budget_rules import prune_to_budget
from sparsemask.spaces.connectivity.prune_rules import prune_report
from sparsemask.spaces.encoder import encoder_weights
from sparsemask.training_setup import Context
from sparsemask.weights import load_strictly

METHODS = ("published", "latency")


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectivitySearchSection(BudgetSection):
    """How connection weights are learnt."""

    title = "connectivity search"
    inherited_last = True
    method: str | None = flag(
        None,
        choices=METHODS,
        help="published: the sparse loss; latency: within a budget (default: latency with a budget, else published)",
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

    def check(self) -> None:
        """One budget at most, and a method that knows budgets."""
        BudgetSection.check(self)
        if self.method == "published" and self.budget is not None:
            raise UseError(f"{self.budget.flag}: --method published knows no budget; take --method latency")
        if self.method == "latency" and self.budget is None:
            raise UseError("--method latency: needs --budget_ms or --budget_macs")

    @property
    def way(self) -> str:
        """The method, which a budget implies where none is named."""
        return self.method or ("published" if self.budget is None else "latency")


class ConnectivitySearchFamily(TrainingFamily[Built]):
    """The fully dense network and its connection weights."""

    verb = "search"

    def add_options(self, parser: Parser) -> None:
        """Flags of the connectivity search."""
        parser.add_section("family", ConnectivitySearchSection)

    def resolve(self, config: RunConfig, given: Mapping[str, Any]) -> RunConfig:
        """Settle the method, and refuse a budget below what any mask costs."""
        section = config.family
        if section.budget is not None:
            section.budget.check(open_costs(config))
        return config.replace(method=section.way)

    def build(self, context: Context) -> Built:
        """The fully dense network: from its checkpoint's configuration, or with pretrained encoder weights."""
        weights, changes = encoder_weights(context)
        config = context.config.replace(**changes)
        seed_all(config.run.seed)
        model = spaces.get(config.network.space).supernet({**config, "noise_std": config.family.noise})
        if weights is not None:
            load_strictly(model.backbone, weights.state, f"encoder '{config.network.backbone_name}'")
        return Built(model, changes=changes)

    def method(self, context: Context, built: Built) -> Method:
        """Network and connection weights together, within the budget if there is one."""
        config, budget = context.config, context.config.family.budget
        if config.family.way == "published" or budget is None:
            return ConnectivitySearch(config)
        return LatencySearch(config, open_costs(config, context.run), budget)

    def finish(self, context: Context, built: Built, result: dict) -> int:
        """Draw the weights; measure and draw the network that pruning would give."""
        config, run, model = context.config, context.run, built.model
        weights = [w.detach().cpu().numpy() for w in model.raw_weights()]
        budget, entries = config.family.budget, {}
        report = prune_report(weights, config.family.thres)
        if budget is not None and not report.problem:
            report = prune_to_budget(weights, config.family.thres, budget, open_costs(config, run))
            entries = {"budget": {"unit": budget.unit, "most": budget.most, "predicted": report.cost}}
        draw_weights(weights, run.pictures / "weights.png", config.family.thres)
        rows = read_rows(run.history)
        history = [row["step"] for row in rows], np.array([row["weights"] for row in rows])
        draw_weight_history(history, run.pictures / "weight_history.png", config.family.thres)
        run_summary.draw_training(context, model)
        if not report.problem:
            strides, channels = model.backbone.strides, model.backbone.channels
            draw_architecture(report.mask, run.pictures / "architecture.png", strides, channels)
            network = spaces.get(config.network.space).network(report.mask, config)
            network.to(context.arithmetic.device, context.arithmetic.parameters)
            cost = measure(network, (1, 3, config.data.crop_size, config.data.crop_size), repeats=10)
            if entries:
                entries["budget"]["measured_ms"] = measured_ms(
                    network, config.data.crop_size, context.arithmetic.device
                )
            run.note(
                kept=page.names_of(report.mask),
                strides=[int(s) for s in strides],
                channels=[int(c) for c in channels],
                **page.cost_entries(cost, config.data.crop_size),
                **entries,
            )
        line = f"searched: {run_summary.metric_text(context, result)}; {report.lines()[0]}"
        run_summary.announce(context, [line, *report.lines()[1:][-1:]] if entries else [line])
        run_summary.announce_next(context, "prune")
        return 0


FAMILY = ConnectivitySearchFamily()
