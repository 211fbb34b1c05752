"""What is particular in a training: a family's hooks in the loop, the optimizer, its learning rate, the batch norms."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsemask.config import RunConfig
from sparsemask.devices import Arithmetic
from sparsemask.engine.distillation import Teacher
from sparsemask.tasks.protocol import EvaluationContext, Task

if TYPE_CHECKING:
    from sparsemask.flags import TrainingSection


class Method:
    """How a family learns its masks. This base trains a plain network: no masks, no penalty."""

    steps = 0
    """Steps of the whole run; the loop sets it before the first."""
    teacher: Teacher | None = None
    """Whose outputs `loss` learns from beside the labels; the family's driver sets it before training."""
    finished = False
    """Whether the run may end before its last step; asked after each evaluation, and kept by `state`."""
    jumped = False
    """Whether the last `after_step` changed weights as no optimizer does: with --ema, the average begins again."""

    def groups(self, model: nn.Module, config: RunConfig) -> list[dict]:
        """Optimizer parameter groups: the encoder at --lr, all else at --lr times --last_layer_lr_mult."""
        training = config.training
        encoder = [p for n, p in model.named_parameters() if n.startswith("backbone.") and p.requires_grad]
        rest = [p for n, p in model.named_parameters() if not n.startswith("backbone.") and p.requires_grad]
        groups = [
            {"name": "encoder", "params": encoder, "lr": training.lr},
            {"name": "decoder", "params": rest, "lr": training.lr * training.last_layer_lr_mult},
        ]
        return [g for g in groups if g["params"]]

    def optimizers(self, model: nn.Module, config: RunConfig) -> list[torch.optim.Optimizer]:
        """The optimizers; the first one's first group is the one whose learning rate is logged."""
        return [optimizer(self.groups(model, config), config.training)]

    def before_step(self, model: nn.Module, step: int) -> None:
        """Called before the first forward pass of a step."""

    def penalty(self, model: nn.Module, step: int) -> tuple[torch.Tensor | None, dict]:
        """What is added to the task's loss, and metrics to log; called after each forward pass."""
        return None, {}

    def loss(self, model: nn.Module, task: Task, images, output, target) -> torch.Tensor:
        """What the network's outputs on `images` cost: a sum, to be divided by the task's count."""
        own = task.loss(output, target)
        return own if self.teacher is None else self.teacher.loss(own, task, images, output, target)

    def before_update(self, model: nn.Module, groups: list[dict]) -> None:
        """Called after backward, before the optimizers' step.

        Args:
            model: its gradients are loss-scaled under float16.
            groups: the optimizers' parameter groups; their learning rates may be changed for this step.
        """

    def after_step(self, model: nn.Module) -> None:
        """Called after every optimizer update."""

    def state(self) -> dict:
        """State of the method for the checkpoint, beside the network: tensors, numbers and strings."""
        return {}

    def restore(self, state: dict) -> None:
        """Go on from what `state` once returned."""

    def evaluate(self, model: nn.Module, task: Task, arithmetic: Arithmetic, config: RunConfig) -> dict[str, float]:
        """Validation metrics: the task's, and what a family has to add."""
        context = EvaluationContext.from_config(arithmetic, config)
        return task.metrics(task.evaluate(model, context, limit=config.training.eval_limit, quick=True))

    def metrics(self, model: nn.Module) -> dict:
        """Metrics shown beside the loss."""
        return {}

    def history(self, model: nn.Module) -> dict:
        """What is remembered at every logged step (history.jsonl)."""
        return {}


def optimizer(groups: list[dict], training: TrainingSection) -> torch.optim.Optimizer:
    """SGD with momentum, as published, or AdamW, which short runs from random weights need."""
    rates = {"lr": training.lr, "weight_decay": training.decay}
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=(training.momentum, 0.999), **rates)
    return torch.optim.SGD(groups, momentum=training.momentum, nesterov=training.nesterov, **rates)


def learning_rate_factor(
    name: str,
    step: int,
    max_iter: int,
    gamma: float = 0.9,
    milestones: Sequence[float] | None = None,
    warmup: int = 0,
    epoch: int = 1,
) -> float:
    """Factor on every base learning rate at a step: a function of it alone, so that resuming needs no history.

    Args:
        name: "poly": (1 - step/max_iter)^gamma, per iteration (SparseMask, section 4.1). "step": gamma at each passed
            milestone. "exponential": gamma to the number of passed epochs. "cosine": half a cosine from 1 to 0, over
            the steps behind the warm-up (Loshchilov and Hutter, 2017, arXiv 1608.03983). "constant": 1.
        step: 0 to max_iter - 1.
        max_iter: steps of the run.
        gamma: exponent of "poly", base of "step" and "exponential".
        milestones: fractions of the run in [0, 1], for "step"; None: 1/2 and 3/4.
        warmup: number of first steps in which the factor rises linearly.
        epoch: steps of an epoch, for "exponential".

    Returns:
        The factor, 0 or more.
    """
    if name == "poly":
        value = (1 - step / max_iter) ** gamma
    elif name == "step":
        value = gamma ** sum(step >= m * max_iter for m in (milestones or (0.5, 0.75)))
    elif name == "exponential":
        value = gamma ** (step // epoch)
    elif name == "cosine":
        value = (1 + math.cos(math.pi * max(0, step - warmup) / max(1, max_iter - warmup))) / 2
    else:
        value = 1.0
    return value * min(1.0, (step + 1) / (warmup + 1)) if warmup else value


def batch_norms(module: nn.Module) -> list[_BatchNorm]:
    """Every batch norm in a module."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


def set_momentum(module: nn.Module, momentum: float | None) -> None:
    """Set the momentum of every batch norm (None: cumulative average)."""
    for norm in batch_norms(module):
        norm.momentum = momentum


def set_training(module: nn.Module, freeze_bn: bool) -> None:
    """Training mode; with `freeze_bn` batch norms use, and keep, their running statistics."""
    module.train()
    if freeze_bn:
        for norm in batch_norms(module):
            norm.eval()


@contextlib.contextmanager
def cumulative(module: nn.Module) -> Iterator[None]:
    """Inside, training-mode passes replace the running statistics by the plain average over the passes."""
    momenta = [(norm, norm.momentum) for norm in batch_norms(module)]
    for norm, _ in momenta:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum


@torch.no_grad()
def reestimate(module: nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Replace the running statistics by averages over `batches` (inputs already on the module's device).

    With the published momentum of 0.0003 they stay near their initial values for thousands of steps, so that the
    evaluation of a short run would mean nothing.
    """
    was_training = module.training
    module.train()
    with cumulative(module):
        for images in batches:
            module(images)
    module.train(was_training)
