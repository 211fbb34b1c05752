"""The hooks of a family in the training loop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from sparsemask.config import RunConfig
from sparsemask.devices import Arithmetic
from sparsemask.tasks.protocol import EvaluationContext, Task

if TYPE_CHECKING:
    from sparsemask.flags import TrainingSection


class Method:
    """How a family learns its masks. This base trains a plain network: no masks, no penalty."""

    steps = 0
    """Steps of the whole run; the loop sets it before the first."""
    finished = False
    """Whether the run may end before its last step; asked after each evaluation, and kept by `state`."""

    def groups(self, model: torch.nn.Module, config: RunConfig) -> list[dict]:
        """Optimizer parameter groups: the encoder at --lr, all else at --lr times --last_layer_lr_mult."""
        training = config.training
        encoder = [p for n, p in model.named_parameters() if n.startswith("backbone.") and p.requires_grad]
        rest = [p for n, p in model.named_parameters() if not n.startswith("backbone.") and p.requires_grad]
        groups = [
            {"name": "encoder", "params": encoder, "lr": training.lr},
            {"name": "decoder", "params": rest, "lr": training.lr * training.last_layer_lr_mult},
        ]
        return [g for g in groups if g["params"]]

    def optimizers(self, model: torch.nn.Module, config: RunConfig) -> list[torch.optim.Optimizer]:
        """The optimizers; the first one's first group is the one whose learning rate is logged."""
        return [optimizer(self.groups(model, config), config.training)]

    def before_step(self, model: torch.nn.Module, step: int) -> None:
        """Called before the first forward pass of a step."""

    def penalty(self, model: torch.nn.Module, step: int) -> tuple[torch.Tensor | None, dict]:
        """What is added to the task's loss, and metrics to log; called after each forward pass."""
        return None, {}

    def loss(self, model: torch.nn.Module, task: Task, images, output, target) -> torch.Tensor:
        """What the network's outputs on `images` cost: a sum, to be divided by the task's count."""
        return task.loss(output, target)

    def before_update(self, model: torch.nn.Module, groups: list[dict]) -> None:
        """Called after backward, before the optimizers' step.

        Args:
            model: its gradients are loss-scaled under float16.
            groups: the optimizers' parameter groups; their learning rates may be changed for this step.
        """

    def after_step(self, model: torch.nn.Module) -> None:
        """Called after every optimizer update."""

    def state(self) -> dict:
        """State of the method for the checkpoint, beside the network: tensors, numbers and strings."""
        return {}

    def restore(self, state: dict) -> None:
        """Go on from what `state` once returned."""

    def evaluate(
        self, model: torch.nn.Module, task: Task, arithmetic: Arithmetic, config: RunConfig
    ) -> dict[str, float]:
        """Validation metrics: the task's, and what a family has to add."""
        context = EvaluationContext.from_config(arithmetic, config)
        return task.metrics(task.evaluate(model, context, limit=config.training.eval_limit, quick=True))

    def metrics(self, model: torch.nn.Module) -> dict:
        """Metrics shown beside the loss."""
        return {}

    def history(self, model: torch.nn.Module) -> dict:
        """What is remembered at every logged step (history.jsonl)."""
        return {}


def optimizer(groups: list[dict], training: TrainingSection) -> torch.optim.Optimizer:
    """SGD with momentum, as published, or AdamW, which short runs from random weights need."""
    rates = {"lr": training.lr, "weight_decay": training.decay}
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, betas=(training.momentum, 0.999), **rates)
    return torch.optim.SGD(groups, momentum=training.momentum, nesterov=training.nesterov, **rates)
