"""Networks that files describe: built as they say, if that can be and if their weights are of such a network."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sparsemask.containers import reading
from sparsemask.weights import load_strictly


@contextlib.contextmanager
def describing(what: object) -> Iterator[None]:
    """Inside, where a network is built from what a file says: whatever that leads to is a UseError naming `what`."""
    with reading(what, "says nothing readable of its network"):
        yield


class _NoDraws(TorchFunctionMode):
    """Draws nothing for tensors without memory: torch would import its whole compiler for that."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.normal_, Tensor.uniform_) and args and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def weightless() -> Iterator[None]:
    """Inside, networks are built without memory, and no random number is drawn."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _NoDraws():
        yield


def build_described(
    build: Callable[[], nn.Module],
    state: Mapping[str, Tensor],
    what: object,
    load: Callable[[nn.Module, Mapping[str, Tensor], object], None] = load_strictly,
) -> nn.Module:
    """The network that `build` makes, its weights loaded, in evaluation mode.

    It is built without memory first, so that sizes that a file only claims are compared with its tensors before any
    memory is taken for them. `load` loads them strictly.

    Raises UseError naming `what` where it cannot be built, or the weights are of another network.
    """
    with describing(what):
        with weightless(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights that are copied nowhere
            load(build(), state, what)
        network = build()
    load(network, state, what)
    return network.eval()
