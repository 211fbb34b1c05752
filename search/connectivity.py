"""How connectivity masks are learnt: weights in [0, 2] with noise, driven to 0 or 1 by the sparse loss.

SparseMask (arXiv 1904.07642), sections 3.2 and 3.3.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch

import spaces
from prune.connectivity import prune_report
from search.losses import sparse_loss
from spaces.encoder import encoder_weights
from sparsemask import report as page
from sparsemask import session
from sparsemask.costs import measure
from sparsemask.engine import Method, optimizer
from sparsemask.engine.randomness import seed_all, step_generator
from sparsemask.engine.records import read_rows
from sparsemask.options import Parser, fraction, natural, rate
from sparsemask.pictures import draw_architecture, draw_curves, draw_weight_history, draw_weights
from sparsemask.session import Session
from sparsemask.weights import load_strictly

NOISE = 3  # stream of randomness


def add_options(parser: Parser) -> None:
    """Flags of the connectivity search."""
    group = parser.add_argument_group("connectivity search")
    group.add_argument("--sparse", type=rate, default=0.01, help="factor of the sparse loss (default: 0.01)")
    group.add_argument(
        "--noise", type=rate, default=0.1, help="standard deviation of the weights' noise (default: 0.1)"
    )
    group.add_argument(
        "--mask_lr_mult", type=rate, default=10.0, help="factor on --lr for the connection weights (published: 10)"
    )
    group.add_argument(
        "--mask_warmup",
        type=natural,
        default=0,
        help="steps before the connection weights move: a random decoder's gradients say nothing of them (default: 0)",
    )
    group.add_argument("--thres", type=fraction, default=0.001, help="threshold of the count shown (default: 0.001)")


class ConnectivitySearch(Method):
    """Train a fully dense network and its connection weights together."""

    def __init__(self, options: argparse.Namespace):
        self.sparse, self.thres, self.seed = options.sparse, options.thres, options.seed
        self.warmup = options.mask_warmup

    def optimizers(self, model: torch.nn.Module, options: argparse.Namespace) -> list[torch.optim.Optimizer]:
        """The network's optimizer, and SGD at a rate of their own for the connection weights.

        Always SGD: a step of Adam has one length whatever the gradient's, so that the small but steady pull of the
        sparse loss would drown in the noise of the task's.
        """
        masks = list(model.raw_weights())
        own = {id(p) for p in masks}
        groups = self.groups(model, options)
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in own]
        rate = options.lr * options.mask_lr_mult
        decay = options.decay if options.optimizer == "sgd" else 0.0
        return [
            optimizer(groups, options),
            torch.optim.SGD(masks, lr=rate, momentum=options.momentum, weight_decay=decay),
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
        figures = {"loss_sparse": float(loss.detach())}
        return (self.sparse * loss if step >= self.warmup else None), figures

    def after_step(self, model: torch.nn.Module) -> None:
        """Keep the raw weights in [0, 2]."""
        model.clamp_weights_()

    def figures(self, model: torch.nn.Module) -> dict:
        """Connections left at the current threshold (before the pruning's cleaning rules)."""
        return {"connections": sum(int((w.detach() / 2 > self.thres).sum()) for w in model.raw_weights())}

    def history(self, model: torch.nn.Module) -> dict:
        """Every connection's weight, stage by stage, (down, up) pairs in order."""
        return {"weights": [round(v, 6) for w in model.raw_weights() for v in w.detach().flatten().tolist()]}


def method(options: argparse.Namespace) -> ConnectivitySearch:
    """The family's method for the training loop."""
    return ConnectivitySearch(options)


def build(opened: Session, task) -> torch.nn.Module:
    """The fully dense network: from its checkpoint's configuration, or with pretrained encoder weights."""
    options = opened.options
    weights = encoder_weights(opened)
    seed_all(options.seed)
    model = spaces.get(options.space).supernet(options)
    if weights is not None:
        load_strictly(model.backbone, weights.state, f"encoder '{options.backbone_name}'")
    model.noise_std = options.noise  # the published 0.1 unless --noise says otherwise
    if opened.main:
        opened.run.note(environment=page.environment(opened.arithmetic.device))
        if opened.state is None:
            session.rewrite_config(opened)
    return model


def finish(opened: Session, model: torch.nn.Module, task, result: dict) -> None:
    """Pictures and report of the search, and the line that says what to do next."""
    options, run = opened.options, opened.run
    weights = [w.detach().cpu().numpy() for w in model.raw_weights()]
    report = prune_report(weights, options.thres)
    draw_weights(weights, run.pictures / "weights.png", options.thres)
    rows = read_rows(run.history)
    history = [row["step"] for row in rows], np.array([row["weights"] for row in rows])
    draw_weight_history(history, run.pictures / "weight_history.png", options.thres)
    draw_curves(read_rows(run.metrics), run.pictures / "curves.png")
    if not report.problem:
        strides, channels = model.backbone.strides, model.backbone.channels
        draw_architecture(report.mask, run.pictures / "architecture.png", strides, channels)
        network = spaces.get(options.space).network(report.mask, options)
        network.to(opened.arithmetic.device, opened.arithmetic.parameters)
        cost = measure(network, (1, 3, options.crop_size, options.crop_size), repeats=10)
        run.note(
            kept=page.names_of(report.mask),
            strides=[int(s) for s in strides],
            channels=[int(c) for c in channels],
            **page.cost_entries(cost, options.crop_size),
        )
    task.draw(task.samples(model, opened.arithmetic, options), run.pictures / "samples.png")
    opened.say(f"searched: {task.primary} {result.get(task.primary, float('nan')):.4f}; {report.lines()[0]}")
    opened.say(f"run: {run.folder} (pictures in {run.pictures})")
    opened.say(f"report: {page.write_report(run)}")
    opened.say(f"next: {page.next_command(opened.run, 'prune')}")
