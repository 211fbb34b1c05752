"""Who computes sparse mask convolutions: backends by name, behind one interface, with the same numbers.

A backend has a `name` and

- ``why_not(device, dtype)``: None where it can compute on this device in this type, else the reason in one line;
- ``conv(x, weight, bias, mask, in_dense, out_dense, geometry, activation)``: the operator `sparsemask::conv`;
- optionally ``block(x, mask, weights, dense, collect_weight, collect_bias, activation)``: the operator
  `sparsemask::block`; where it is missing, :func:`compose_block` serves.

Both are in :mod:`sparsemask.sparse.operators`, which calls backends without gradients, on checked arguments, and brings
the memory format of what they return in order.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from sparsemask.errors import UseError, choose
from sparsemask.sparse.geometry import Geometry

_MODULES = {  # imported when first asked for: each has an attribute BACKEND
    "reference": "sparsemask.sparse.reference",
    "gather": "sparsemask.sparse.gather",
    "native": "sparsemask.sparse.native",
    "triton": "sparsemask.sparse.triton_backend",
    "auto": "sparsemask.sparse.auto",
}
_registered: dict[str, Backend] = {}
_chosen: str | None = None  # by `with backend(name)`; a plain global, which torch.compile guards
_repeating = 0  # how many `with repeatable()` there are around


class Backend(Protocol):
    """What a backend has at least."""

    name: str

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot compute on this device in this type; None where it can."""

    def conv(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor,
        in_dense: Tensor,
        out_dense: Tensor,
        geometry: Geometry,
        activation: str,
    ) -> Tensor:
        """One sparse mask convolution."""


def register_backend(name: str, backend: Backend) -> None:
    """Make `backend` available under `name`; replaces one of that name."""
    _registered[name] = backend


def find(name: str) -> Backend:
    """The backend of a name; UseError, listing the names, for an unknown one."""
    found = _registered.get(name)
    if found is None:
        choose(name, names(), "backend")
        found = _registered[name] = importlib.import_module(_MODULES[name]).BACKEND
    return found


def names() -> list[str]:
    """All known names."""
    return [*_MODULES, *(name for name in _registered if name not in _MODULES)]


def able(name: str, x: Tensor) -> Backend:
    """The backend of a name, which can compute on `x`; UseError, saying why, where it cannot."""
    backend = find(name)
    reason = backend.why_not(x.device, x.dtype)
    if reason is not None:
        raise UseError(f"backend '{name}' cannot compute this: {reason}")
    return backend


def available_backends(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, str | None]:
    """For every backend None, or why it cannot compute on this device in this type."""
    return {name: find(name).why_not(torch.device(device), dtype) for name in names()}


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Within the `with`, backend `name` computes everything in this process, whatever :func:`set_backend` chose.

    Raises UseError, listing the names, for an unknown one.
    """
    global _chosen
    choose(name, names(), "backend")
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """Within the `with`, backend "auto" races nobody: native kernels compute what they can, `reference` all else.

    Backends agree up to rounding; which one is the fastest may change from call to call and from run to run. What
    trains, scores or writes results computes in here, so that the same command gives the same bits on one machine.
    """
    global _repeating
    _repeating += 1
    try:
        yield
    finally:
        _repeating -= 1


def repeating() -> bool:
    """Whether this is inside :func:`repeatable`."""
    return _repeating > 0


def set_backend(model: nn.Module, name: str) -> nn.Module:
    """Choose who computes the model's sparse mask convolutions; "auto" (the default) measures and decides.

    Raises UseError, listing the names, for an unknown one.
    """
    choose(name, names(), "backend")
    for module in model.modules():
        if getattr(type(module), "backend", None) == "auto":  # not a module of somebody else's
            module.backend = name
    return model


def current(own: str) -> str:
    """The backend that serves a module whose own choice is `own`."""
    return own if _chosen is None else _chosen


def compose_block(
    backend: Backend,
    x: Tensor,
    mask: Tensor,
    weights: Sequence[Tensor],
    dense: Tensor,
    collect_weight: Tensor,
    collect_bias: Tensor | None,
    activation: str,
) -> Tensor:
    """A block from a backend's convolutions: its layers in turn, and the 1×1 over all of them."""
    dims = x.ndim - 2
    everything = torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
    features, before = [x], everything
    for weight, mine in zip(weights, dense, strict=True):
        geometry = Geometry.of(dims, tuple(weight.shape[2:]))
        features.append(backend.conv(features[-1], weight, None, mask, before, mine, geometry, activation))
        before = mine
    outs = torch.ones(collect_weight.shape[0], dtype=torch.bool, device=x.device)
    joined = torch.cat(features[1:], 1)
    return backend.conv(joined, collect_weight, collect_bias, mask, dense.flatten(), outs, Geometry.of(dims, 1), "none")
