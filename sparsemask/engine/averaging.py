"""Exponential moving average of a network's weights and buffers (Polyak averaging, --ema)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

_WARM = 10  # the average follows the first updates faster, so that the random initial weights are forgotten


class WeightAverage:
    """The moving average of a network's state: after update n it is d·average + (1 - d)·weights.

    d is the smaller of `decay` and n / (n + 9), n counted from 1. Entries that are no floating-point numbers are the
    network's own.

    Args:
        model: the network that is averaged, already on its device.
        decay: in (0, 1).

    Attributes:
        updates: number of updates since the beginning or the last `restart`.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay, self.updates = model, decay, 0
        self._average = {name: value.detach().clone() for name, value in _tensors(model).items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take the network's weights in, after an optimizer step."""
        self.updates += 1
        decay = min(self.decay, self.updates / (self.updates + _WARM - 1))
        for name, value in _tensors(self.model).items():
            average = self._average[name]
            if average.is_floating_point():
                average.mul_(decay).add_(value, alpha=1 - decay)
            else:
                average.copy_(value)

    def restart(self) -> None:
        """Begin again at the network's weights: they were changed otherwise than by a step of the optimizer."""
        self.updates = 0
        for name, value in _tensors(self.model).items():
            self._average[name].copy_(value.detach())

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the network has the averaged weights; what is changed of them there stays in the average."""
        self.exchange()
        try:
            yield
        finally:
            self.exchange()

    @torch.no_grad()
    def exchange(self) -> None:
        """Exchange the network's weights and the average, in place."""
        for name, value in _tensors(self.model).items():
            average = self._average[name]
            kept = value.detach().clone()
            value.copy_(average)
            average.copy_(kept)

    @property
    def weights(self) -> dict[str, Tensor]:
        """What the network does not have now: the average, inside of `applied` the weights as trained."""
        return dict(self._average)

    def restore(self, updates: int, trained: Mapping[str, Tensor]) -> None:
        """Go on as a checkpoint has it, with the average in the network: it gets the weights as trained.

        Args:
            updates: number of updates so far.
            trained: the weights as trained, by the names of :attr:`weights`.

        Raises:
            ValueError: names or shapes of another network.
        """
        if self._average.keys() != trained.keys():
            raise ValueError("the weights beside the average are of another network")
        for name, value in self._average.items():
            if value.shape != trained[name].shape:
                raise ValueError(f"{name} beside the average is {tuple(trained[name].shape)}, not {tuple(value.shape)}")
            value.copy_(trained[name])
        self.updates = int(updates)
        self.exchange()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict's tensors, which share memory with the network's; of tied weights the first name."""
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, value in model.state_dict(keep_vars=True).items():
        if isinstance(value, Tensor) and id(value) not in seen:
            seen.add(id(value))
            tensors[name] = value
    return tensors
