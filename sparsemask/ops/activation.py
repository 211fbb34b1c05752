"""Activations of sparse mask convolutions by name: "none", "relu", "leaky_relu:0.1" (slope after the colon)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.errors import UseError, choose

_KINDS = ("none", "relu", "leaky_relu")
# All of them commute with positive factors, which the training form and the backward rely on.


def parse(name: str) -> tuple[str, float]:
    """(kind, slope below zero) of an activation's name; "leaky_relu" alone has torch's slope 0.01.

    Raises:
        UseError: for an unknown one or a slope outside [0, 1].
    """
    kind, colon, rest = name.partition(":")
    choose(kind, _KINDS, "activation")
    if kind != "leaky_relu":
        if colon:
            raise UseError(f"activation {kind} takes no number: '{name}'")
        return kind, 1.0 if kind == "none" else 0.0
    try:
        slope = float(rest) if colon else 0.01
    except ValueError:
        slope = -1.0
    if not 0 <= slope <= 1:
        raise UseError(f"the slope of activation '{name}' must be a number in [0, 1]")
    return kind, slope


def apply(name: str, x: Tensor) -> Tensor:
    """The activation of x."""
    kind, slope = parse(name)
    if kind == "none":
        return x
    return F.relu(x) if kind == "relu" else F.leaky_relu(x, slope)


def apply_(name: str, x: Tensor) -> Tensor:
    """The activation of x, in place; returns x."""
    kind, slope = parse(name)
    if kind == "none":
        return x
    return x.relu_() if kind == "relu" else F.leaky_relu_(x, slope)


def backward(name: str, grad: Tensor, out: Tensor) -> Tensor:
    """The gradient before the activation, from the one after it and its output."""
    kind, slope = parse(name)
    if kind == "none":
        return grad
    return torch.where(out > 0, grad, grad * slope if slope else 0.0)
