"""Backends of sparse mask convolution by name: the same numbers, computed in different ways.

A backend has a `name`; ``why_not(device, dtype)``, None where it can compute and else the reason; ``conv(x, weight,
bias, mask, in_dense, out_dense, geometry, activation)`` for one layer; and perhaps ``block(x, mask, weights, dense,
collect_weight, collect_bias, activation)`` for a module's layers with their fusion (composed of layers where absent),
and ``attended_block`` with the attention's four tensors more (composed likewise).

    reference  convolutions of everything, times the masks: the judge of the others, and the dense form
    gather     kept rows gathered, one matrix product a layer: pure PyTorch
    native     C++ on CPUs: rows read where they lie
    triton     the same on GPUs
    auto       whichever of these is fastest here, found by measuring
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sparsemask.errors import UseError, choose
from sparsemask.sparse.functional import channel_attention
from sparsemask.sparse.geometry import Geometry

_MODULES = {
    "reference": "sparsemask.sparse.reference",
    "gather": "sparsemask.sparse.gather",
    "native": "sparsemask.sparse.native",
    "triton": "sparsemask.sparse.triton_backend",
    "auto": "sparsemask.sparse.auto",
}
_BACKENDS: dict[str, object] = {}
_forced: list[str] = []


def register_backend(name: str, backend: object) -> object:
    """Make `backend` known as `name` (a later one of the same name replaces it)."""
    _BACKENDS[name] = backend
    return backend


def find(name: str):
    """The backend called `name`; UseError listing the right names otherwise."""
    choose(name, sorted({*_MODULES, *_BACKENDS}), "backend")
    if name not in _BACKENDS:
        _BACKENDS[name] = importlib.import_module(_MODULES[name]).BACKEND
    return _BACKENDS[name]


def available_backends(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, str | None]:
    """Every backend's name, with None where it can compute on this device in this type, else the reason."""
    return {name: find(name).why_not(torch.device(device), dtype) for name in sorted({*_MODULES, *_BACKENDS})}


def chosen(name: str) -> str:
    """The backend in force: that of the innermost :func:`backend`, else `name`."""
    return _forced[-1] if _forced else name


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Inside, every sparse mask convolution is computed by this backend."""
    find(name)
    _forced.append(name)
    try:
        yield
    finally:
        _forced.pop()


def set_backend(model: nn.Module, name: str) -> nn.Module:
    """Let every sparse mask convolution of a model be computed by the backend `name`; returns the model."""
    find(name)
    for module in model.modules():
        if hasattr(module, "backend"):
            module.backend = name
    return model


def usable(name: str, x: Tensor):
    """The backend called `name`; UseError where it cannot compute on what x is."""
    found = find(name)
    reason = found.why_not(x.device, x.dtype)
    if reason is not None:
        raise UseError(f"backend '{name}' cannot be used here: {reason}")
    return found


def run_conv(name: str, x: Tensor, *rest) -> Tensor:
    """One layer by the backend `name`."""
    return usable(name, x).conv(x, *rest)


def run_block(name: str, x: Tensor, *rest) -> Tensor:
    """A module's layers and their fusion by the backend `name`."""
    return block_of(usable(name, x))(x, *rest)


def run_attended(name: str, x: Tensor, *rest) -> Tensor:
    """A module with channel attention and its input added, by the backend `name`."""
    return attended_of(usable(name, x))(x, *rest)


def attended_of(found):
    """A backend's attended block, or one composed of its block."""
    return getattr(found, "attended_block", None) or (lambda *args: composed_attention(found, *args))


def composed_attention(found, x: Tensor, *rest) -> Tensor:
    """x + a·block(x) with the attention a from the mean of the block's output."""
    y = block_of(found)(x, *rest[:-1])
    factors = channel_attention(y.flatten(2).mean(2), rest[-1])
    return y.mul_(factors.view(*factors.shape, *[1] * (x.ndim - 2))).add_(x)


def block_of(found):
    """A backend's block, or one composed of its layers."""
    return getattr(found, "block", None) or (lambda *args: composed_block(found, *args))


def composed_block(
    found,
    x: Tensor,
    mask: Tensor,
    weights: list[Tensor],
    dense: Tensor,
    collect_weight: Tensor,
    collect_bias: Tensor | None,
    activation: str,
) -> Tensor:
    """A module by layers of a backend: the chain, its outputs concatenated, the 1×1 fusion to dense channels."""
    dims = x.ndim - 2
    geometry, before, outputs = Geometry.of(dims, tuple(weights[0].shape[2:])), dense.new_ones(x.shape[1]), []
    for weight, mine in zip(weights, dense, strict=True):
        x = found.conv(x, weight, None, mask, before, mine, geometry, activation)
        outputs.append(x)
        before = mine
    everything = dense.new_ones(collect_weight.shape[0])
    joined, one = torch.cat(outputs, 1), Geometry.of(dims, 1)
    return found.conv(joined, collect_weight, collect_bias, mask, dense.flatten(), everything, one, "none")
