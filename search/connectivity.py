"""Search for connectivity masks: noisy connection weights in [0, 2], driven to 0 or 2 by the sparse loss.

SparseMask (arXiv 1904.07642), sections 3.2 and 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sparsemask import report as page
from sparsemask import spaces
from sparsemask.config import RunConfig, Section, flag
from sparsemask.costs import measure
from sparsemask.engine import Method, optimizer
from sparsemask.engine.randomness import seed_all, step_generator
from sparsemask.engine.records import read_rows
from sparsemask.families import Built, TrainingFamily
from sparsemask.options import Parser, fraction, natural, rate
from sparsemask.pictures import draw_architecture, draw_weight_history, draw_weights
from sparsemask.search.losses import sparse_loss
from sparsemask.spaces.connectivity.prune_rules import prune_report
from sparsemask.spaces.encoder import encoder_weights
from sparsemask.training_setup import Context
from sparsemask.weights import load_strictly

NOISE = 3  # stream of randomness


@dataclass(frozen=True, kw_only=True, slots=True)
class ConnectivitySearchSection(Section):
    """How connection weights are learnt."""

    title = "connectivity search"
    sparse: float = flag(0.01, rate, help="factor of the sparse loss (default: 0.01)")
    noise: float = flag(0.1, rate, help="standard deviation of the weights' noise (default: 0.1)")
    mask_lr_mult: float = flag(10.0, rate, help="factor on --lr for the connection weights (published: 10)")
    mask_warmup: int = flag(
        0,
        natural,
        help="steps before the connection weights move: a random decoder's gradients say nothing of them (default: 0)",
    )
    thres: float = flag(0.001, fraction, help="threshold of the count shown (default: 0.001)")


class ConnectivitySearch(Method):
    """Train a fully dense network and its connection weights together."""

    def __init__(self, config: RunConfig):
        self.sparse, self.thres, self.seed = config.family.sparse, config.family.thres, config.run.seed
        self.warmup = config.family.mask_warmup

    def optimizers(self, model: torch.nn.Module, config: RunConfig) -> list[torch.optim.Optimizer]:
        """The network's optimizer, and SGD with a separate learning rate for the connection weights.

        Always SGD: Adam normalises the gradient's magnitude, so that the small but constant gradient of the sparse loss
        would be lost in the noise of the task's.
        """
        masks = list(model.raw_weights())
        mask_ids = {id(p) for p in masks}
        groups = self.groups(model, config)
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in mask_ids]
        training = config.training
        rate = training.lr * config.family.mask_lr_mult
        decay = training.decay if training.optimizer == "sgd" else 0.0
        return [
            optimizer(groups, training),
            torch.optim.SGD(masks, lr=rate, momentum=training.momentum, weight_decay=decay),
        ]

    def before_step(self, model: torch.nn.Module, step: int) -> None:
        """Draw the step's noise: the same in every part of the batch and in every process; none outside steps."""
        for w in model.raw_weights():
            w.requires_grad_(step >= self.warmup)
        if step < 0:
            model.set_noise([torch.zeros(w.shape) for w in model.raw_weights()])
        else:
            model.sample_noise(step_generator(self.seed, step, NOISE))

    def penalty(self, model: torch.nn.Module, step: int) -> tuple[torch.Tensor, dict]:
        """λ·Σ_i L_s(W_i) on the noisy weights of this forward pass."""
        loss = sum(sparse_loss(w) for w in model.connection_weights())
        metrics = {"loss_sparse": float(loss.detach())}
        return (self.sparse * loss if step >= self.warmup else None), metrics

    def after_step(self, model: torch.nn.Module) -> None:
        """Keep the raw weights in [0, 2]."""
        model.clamp_weights_()

    def metrics(self, model: torch.nn.Module) -> dict:
        """Connections left at the current threshold (before the pruning's cleaning rules)."""
        return {"connections": sum(int((w.detach() / 2 > self.thres).sum()) for w in model.raw_weights())}

    def history(self, model: torch.nn.Module) -> dict:
        """Every connection's weight, stage by stage, (down, up) pairs in order."""
        return {"weights": [round(v, 6) for w in model.raw_weights() for v in w.detach().flatten().tolist()]}


class ConnectivitySearchFamily(TrainingFamily[Built]):
    """The fully dense network and its connection weights."""

    verb = "search"

    def add_options(self, parser: Parser) -> None:
        """Flags of the connectivity search."""
        parser.add_section("family", ConnectivitySearchSection)

    def build(self, context: Context) -> Built:
        """The fully dense network: from its checkpoint's configuration, or with pretrained encoder weights."""
        weights, changes = encoder_weights(context)
        config = context.config.replace(**changes)
        seed_all(config.run.seed)
        model = spaces.get(config.network.space).supernet({**config, "noise_std": config.family.noise})
        if weights is not None:
            load_strictly(model.backbone, weights.state, f"encoder '{config.network.backbone_name}'")
        return Built(model, changes=changes)

    def method(self, context: Context, built: Built) -> ConnectivitySearch:
        """Network and connection weights together."""
        return ConnectivitySearch(context.config)

    def finish(self, context: Context, built: Built, result: dict) -> int:
        """Draw the weights; measure and draw the network that pruning at the threshold would give."""
        config, run, model = context.config, context.run, built.model
        weights = [w.detach().cpu().numpy() for w in model.raw_weights()]
        report = prune_report(weights, config.family.thres)
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
            cost = measure(network, (1, 3, config.data.crop_size, config.data.crop_size), repeats=10)
            run.note(
                kept=page.names_of(report.mask),
                strides=[int(s) for s in strides],
                channels=[int(c) for c in channels],
                **page.cost_entries(cost, config.data.crop_size),
            )
        line = f"searched: {context.metric_text(result)}; {report.lines()[0]}"
        context.announce([line], then="prune")
        return 0


FAMILY = ConnectivitySearchFamily()
