"""Distillation (Hinton et al., arXiv 1503.02531): training on labels and on a frozen teacher's outputs.

What an output's distance to the teacher's is, each task says (:meth:`sparsemask.tasks.Task.teacher_loss`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from sparsemask.tasks.protocol import Task


@dataclass(frozen=True)
class Teacher:
    """A network that a training learns from; it is no part of what is trained or saved.

    Args:
        network: frozen.
        share: weight w of its loss, 0 or more and below 1.
        temperature: T of both softmaxes, where outputs are scores of classes.
    """

    network: nn.Module
    share: float
    temperature: float

    def loss(self, own: Tensor, task: Task, inputs: Any, output: Any, target: Tensor) -> Tensor:
        """(1 - w) · own + w · the task's distance to the teacher's output.

        Args:
            own: the loss on the labels, a sum over what the task counts.
            task: whose outputs these are.
            inputs: of the network, on the teacher's device.
            output: of the network that is trained.
            target: of the batch.
        """
        return self.mixed(own, task, output, self.answer(inputs), target)

    @torch.no_grad()
    def answer(self, inputs: Any) -> Any:
        """The teacher's output."""
        return self.network.eval()(inputs)  # its batch norms must neither see nor remember this batch

    def mixed(self, own: Tensor, task: Task, output: Any, answer: Any, target: Tensor) -> Tensor:
        """As :meth:`loss`, where several outputs are compared with one answer."""
        return (1 - self.share) * own + self.share * task.teacher_loss(output, answer, target, self.temperature)


def softened_divergence(output: Tensor, answer: Tensor, temperature: float) -> Tensor:
    """T² · KL(softmax(answer / T) ‖ softmax(output / T)) over the second dimension.

    Args:
        output: scores (N, C, ...).
        answer: the teacher's, of the same shape.
        temperature: T.

    Returns:
        float32 (N, ...), summed over the classes.
    """
    scores, wanted = (F.log_softmax(values.float() / temperature, 1) for values in (output, answer))
    return temperature**2 * F.kl_div(scores, wanted, reduction="none", log_target=True).sum(1)


def softened_binary_divergence(output: Tensor, answer: Tensor, temperature: float) -> Tensor:
    """:func:`softened_divergence` of yes and no, of logits of yes: float32 in the shape of both."""
    both = [torch.stack([torch.zeros_like(logits), logits], 1) for logits in (output.float(), answer.float())]
    return softened_divergence(both[0], both[1], temperature)
