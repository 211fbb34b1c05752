"""Build networks from files that describe them, and check that the weights fit."""

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
    """Context in which a network is built from a file's description: every failure is a UseError that names `what`."""
    with reading(what, "says nothing readable of its network"):
        yield


class _NoDraws(TorchFunctionMode):
    """Skips random initialisation of meta tensors, for which torch would import its compiler."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (Tensor.normal_, Tensor.uniform_) and args and args[0].is_meta:
            return args[0]
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def weightless() -> Iterator[None]:
    """Context in which networks are built on the meta device and no random number is drawn."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"), _NoDraws():
        yield


def build_described(
    build: Callable[[], nn.Module],
    state: Mapping[str, Tensor],
    what: object,
    load: Callable[[nn.Module, Mapping[str, Tensor], object], None] = load_strictly,
) -> nn.Module:
    """Build a network, load its weights strictly and put it into evaluation mode.

    It is built on the meta device first, so that the sizes that a file claims are compared with its tensors before
    memory is allocated.

    Args:
        build: makes the network.
        state: its weights.
        what: the file's name in errors.
        load: loads weights strictly: (network, state, what).

    Raises:
        UseError: the network cannot be built, or the weights are of another one.
    """
    with describing(what):
        with weightless(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights that are copied nowhere
            load(build(), state, what)
        network = build()
    load(network, state, what)
    return network.eval()
