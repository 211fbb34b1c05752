"""The published way: noisy connection weights in [0, 2], driven to 0 or 2 by the sparse loss.

SparseMask (arXiv 1904.07642), sections 3.2 and 3.3.
"""

from __future__ import annotations

import torch

from sparsemask.config import RunConfig
from sparsemask.engine import Method, optimizer
from sparsemask.engine.randomness import step_generator
from sparsemask.search.losses import sparse_loss

NOISE = 3  # stream of randomness


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
