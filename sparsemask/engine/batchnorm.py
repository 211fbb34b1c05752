"""Batch norms: frozen statistics, and statistics re-estimated before a short run is evaluated.

With the published momentum of 0.0003, running statistics stay near their initial values for thousands of steps, so that
the evaluation of a short run means nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch.nn.modules.batchnorm import _BatchNorm


def norms(module: torch.nn.Module) -> list[_BatchNorm]:
    """Every batch norm in a module."""
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


def set_momentum(module: torch.nn.Module, momentum: float | None) -> None:
    """Set the momentum of every batch norm (None: cumulative average)."""
    for norm in norms(module):
        norm.momentum = momentum


def set_training(module: torch.nn.Module, freeze_bn: bool) -> None:
    """Training mode; with `freeze_bn` batch norms use, and keep, their running statistics."""
    module.train()
    if freeze_bn:
        for norm in norms(module):
            norm.eval()


@contextlib.contextmanager
def cumulative(module: torch.nn.Module) -> Iterator[None]:
    """Inside, training-mode passes replace the running statistics by the plain average over the passes."""
    momenta = [(norm, norm.momentum) for norm in norms(module)]
    for norm, _ in momenta:
        norm.reset_running_stats()
        norm.momentum = None
    try:
        yield
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum


@torch.no_grad()
def reestimate(module: torch.nn.Module, batches: Iterable[torch.Tensor]) -> None:
    """Replace the running statistics by averages over `batches` (inputs already on the module's device)."""
    was_training = module.training
    module.train()
    with cumulative(module):
        for images in batches:
            module(images)
    module.train(was_training)
