"""Sparsity of features: the share of zeros after every ReLU of a network, channel by channel.

That many activations are zero, and that some channels hold most of them, is what motivates masks over locations and
channels (Wang et al., "Exploring sparsity in image super-resolution for efficient inference", CVPR 2021, section 3).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from sparsemask.timing import evaluating

_aten = torch.ops.aten
# Everything that cuts off at 0: ReLU, and ReLU6 in its two forms.
_CUTS = {_aten.relu, _aten.relu_, _aten.relu6, _aten.hardtanh, _aten.hardtanh_, _aten.clamp_min, _aten.clamp_min_}


@dataclass
class LayerZeros:
    """Zeros after one ReLU."""

    name: str
    """Of the module that computes it."""
    zeros: Tensor
    """(C,) float64: the share of zero activations of each channel, over all places and pictures."""
    count: int = 0
    """Places over which it was taken."""

    @property
    def mean(self) -> float:
        """Over the channels."""
        return float(self.zeros.mean())

    def above(self, share: float) -> int:
        """Channels with a larger share of zeros."""
        return int((self.zeros > share).sum())


def zero_shares(network: nn.Module, batches: Iterable[Tensor]) -> list[LayerZeros]:
    """Share of zeros after every ReLU, in the order of computation, with the network in evaluation mode.

    Features of a single location (the means of channel attention) are skipped. ReLUs inside custom operators are not
    seen: pass a form of the network without such operators.

    Args:
        network: a module.
        batches: inputs (N, C, *spatial).

    Returns:
        An entry for each ReLU, over all batches.
    """
    counter = _Counter()
    with evaluating(network), _named(network, counter.stack):
        for batch in batches:
            counter.calls.clear()
            with counter:
                network(batch)
    return [LayerZeros(name, zeros / count, count) for name, (zeros, count) in counter.zeros.items()]


class _Counter(TorchDispatchMode):
    """Counts the zeros in the outputs of all operators that clip at zero."""

    def __init__(self):
        super().__init__()
        self.stack: list[str] = []
        self.calls: dict[str, int] = {}
        self.zeros: dict[str, tuple[Tensor, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(func, OpOverload) and func.overloadpacket in _CUTS and out.ndim >= 3 and out[0, 0].numel() > 1:
            self._count(out)
        return out

    def _count(self, out: Tensor) -> None:
        name = self.stack[-1] if self.stack else ""
        self.calls[name] = number = self.calls.get(name, 0) + 1
        name = name if number == 1 else f"{name} ({number})"
        zeros = (out == 0).transpose(0, 1).flatten(1).sum(1).double().cpu()
        before, locations = self.zeros.get(name, (0, 0))
        self.zeros[name] = before + zeros, locations + out.numel() // out.shape[1]


@contextlib.contextmanager
def _named(network: nn.Module, stack: list[str]) -> Iterator[None]:
    """Inside, the stack holds the names of the modules at work."""
    hooks = []
    for name, module in network.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda *_, name=name: stack.append(name)))
        hooks.append(module.register_forward_hook(lambda *_: stack.pop() and None, always_call=True))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
