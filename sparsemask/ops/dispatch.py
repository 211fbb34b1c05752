"""Which backend computes an operator's call: backends by name, the choice of the caller, and the one way to a result.

A module of `sparsemask.backends` is a backend, imported when it is first asked for; others are registered
(:func:`sparsemask.backends.register_backend`). All give the same numbers up to rounding.
"""

from __future__ import annotations

import contextlib
import importlib
import pkgutil
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from sparsemask.errors import UseError, choose
from sparsemask.ops.layout import laid_out_like

if TYPE_CHECKING:  # that package knows every operator's call: at run time it stands above this one
    from sparsemask.backends import Backend

_PACKAGE = "sparsemask.backends"  # of modules that have an object BACKEND each
loaded: dict[str, Backend] = {}  # backends by name, as far as they have been asked for or registered
_chosen: str | None = None  # by `with backend(name)`; a plain global, which torch.compile guards
_repeating = 0  # how many `with repeatable()` there are around
_int8 = 0  # and how many `with int8()`
_as_program = _as_nodes = 0


class Call(Protocol):
    """The checked arguments of an operator that names its backend."""

    @property
    def like(self) -> Tensor:
        """The feature whose type, device and memory layout the result has."""

    def served_by(self, backend: Backend) -> Tensor:
        """What the backend computes of it, in any memory layout."""


def serve(call: Call, name: str) -> Tensor:
    """The call's result by the backend of a name, laid out as its features; UseError where it cannot compute this."""
    like = call.like
    return laid_out_like(call.served_by(able(name, like)), like)


def serve_anyhow(call: Call, name: str) -> Tensor:
    """As :func:`serve`, by the reference where the backend cannot compute this; "auto" means `native`."""
    like = call.like
    return laid_out_like(call.served_by(able_or_reference(name, like)), like)


def beats_dense(weight: Tensor, x: Tensor, name: str = "auto", in_nodes: bool = False) -> bool:
    """Whether the backend in use (`name`, where nobody says another) has a faster convolution than torch's, unmasked.

    Args:
        weight: (C_out, C_in, *kernel), of stride 1 and "same" padding.
        x: features (N, C_in, *spatial).
        name: of the network's own backend.
        in_nodes: whether this holds for files whose operators are nodes, too; another runtime's own convolutions may
            be as fast.

    Returns:
        In a program that keeps the toolkit's operators what `native` says, wherever it is made; False in all others,
        traced or compiled.
    """
    if _as_program:
        like = x.dtype == weight.dtype and x.device.type == "cpu"
        return like and (in_nodes or not _as_nodes) and find("native").beats_dense(weight)
    if torch.compiler.is_compiling() or x.is_meta:
        return False
    return x.dtype == weight.dtype and able_or_reference(current(name), x).beats_dense(weight)


def find(name: str) -> Backend:
    """The backend of a name; UseError, listing the names, for an unknown one."""
    backend = loaded.get(name)
    if backend is None:
        choose(name, names(), "backend")
        backend = loaded[name] = importlib.import_module(f"{_PACKAGE}.{name}").BACKEND
    return backend


def able(name: str, x: Tensor) -> Backend:
    """The backend of a name, which can compute on `x`; UseError, saying why, where it cannot."""
    backend = find(name)
    reason = backend.why_not(x.device, x.dtype)
    if reason is not None:
        raise UseError(f"backend '{name}' cannot compute this: {reason}")
    return backend


def able_or_reference(name: str, x: Tensor) -> Backend:
    """The backend of a name where it can compute on `x`, else the reference; "auto" means `native`.

    For operators that few backends have kernels of, so that there is nothing to race.
    """
    backend = find("native" if name == "auto" else name)
    return backend if backend.why_not(x.device, x.dtype) is None else find("reference")


def chosen_for(x: Tensor) -> Backend:
    """The backend for an operator that is told of none: that of `with backend(name)`, else `native` where it can."""
    return able_or_reference(current("auto"), x)


@lru_cache(maxsize=1)
def shipped() -> tuple[str, ...]:
    """The names of the toolkit's own backends."""
    return tuple(module.name for module in pkgutil.iter_modules(importlib.import_module(_PACKAGE).__path__))


def names() -> list[str]:
    """All known names."""
    return [*shipped(), *(name for name in loaded if name not in shipped())]


def available_backends(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, str | None]:
    """Of every backend, whether it can compute.

    Args:
        device, dtype: of the features.

    Returns:
        By name None, or why it cannot compute on this device in this type.
    """
    return {name: find(name).why_not(torch.device(device), dtype) for name in names()}


@contextlib.contextmanager
def backend(name: str) -> Iterator[None]:
    """Within the `with`, backend `name` computes everything in this process, whatever :func:`set_backend` chose.

    Raises:
        UseError: for an unknown name; it lists the known ones.
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


@contextlib.contextmanager
def int8() -> Iterator[None]:
    """Within the `with`, native kernels compute what skips in int8, where it comes in bfloat16.

    That is an approximation: features have 256 values, weights 255, for each layer anew. Layers of few channels stay in
    bfloat16; see :mod:`sparsemask.backends.native.bfloat16`.
    """
    global _int8
    _int8 += 1
    try:
        yield
    finally:
        _int8 -= 1


@contextlib.contextmanager
def as_program(nodes: bool = False) -> Iterator[None]:
    """Within the `with`, a call makes the operators of a program that keeps the toolkit's own.

    Args:
        nodes: whether they become nodes of another runtime.
    """
    global _as_program, _as_nodes
    _as_program += 1
    _as_nodes += nodes
    try:
        yield
    finally:
        _as_program -= 1
        _as_nodes -= nodes


def in_program() -> bool:
    """Whether this is inside :func:`as_program`."""
    return _as_program > 0


def in_int8() -> bool:
    """Whether this is inside :func:`int8`."""
    return _int8 > 0


def set_backend(model: nn.Module, name: str) -> nn.Module:
    """Choose who computes the model's sparse mask convolutions; "auto" (the default) measures and decides.

    Args:
        model: changed in place; modules of other libraries are left alone.
        name: of a backend.

    Returns:
        The model.

    Raises:
        UseError: for an unknown name; it lists the known ones.
    """
    choose(name, names(), "backend")
    for module in model.modules():
        if getattr(type(module), "backend", None) == "auto":  # not a module of somebody else's
            module.backend = name
    return model


def current(own: str, planned: str | None = None, x: Tensor | None = None) -> str:
    """The backend that serves a module.

    Args:
        own: the module's own choice.
        planned: what a plan chose for it in place of "auto"; not followed inside :func:`repeatable`, since which of
            several equal ways is the fastest was found by the clock, in programs, which run on other machines too, and
            where it cannot compute.
        x: the features, where there is a plan.
    """
    if _chosen is not None:
        return _chosen
    if planned is None or x is None or own != "auto" or _repeating or torch.compiler.is_compiling():
        return own
    return planned if find(planned).why_not(x.device, x.dtype) is None else own


def add(name: str, backend: Backend) -> None:
    """Make a backend known under a name; replaces one of that name."""
    loaded[name] = backend
