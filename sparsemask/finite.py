"""Check of network outputs: values that are not finite raise an error.

Without it NaN, which compares false with everything, would become class 0, a black pixel, or a disparity without value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from sparsemask.errors import UseError


class NotFiniteError(UseError):
    """A network's output holds NaN or infinite values."""


def check_output(output: Any, model: object = None, what: object = "the network's output") -> Any:
    """Return a network's output if all of its values are finite.

    Args:
        output: a tensor, or tensors in sequences or mappings.
        model: the network, a module or an object with one as `network`; its weights are checked for the message.
        what: how the message begins.

    Raises:
        NotFiniteError: a value is NaN or infinite; the message counts them, and names weights that are not finite.
    """
    for tensor in _tensors(output):
        finite = torch.isfinite(tensor)
        if not bool(finite.all()):
            bad = tensor.numel() - int(finite.sum())
            raise NotFiniteError(
                f"{what} is not finite: {bad} of {tensor.numel()} values are NaN or infinite{_why(model)}"
            )
    return output


def _tensors(value: Any):
    if isinstance(value, Tensor):
        if value.is_floating_point() or value.is_complex():
            yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


@runtime_checkable
class _Wraps(Protocol):
    """What calls a network in a way of its own."""

    network: nn.Module


def _why(model: object) -> str:
    module = model.network if isinstance(model, _Wraps) and not isinstance(model, nn.Module) else model
    if not isinstance(module, nn.Module):
        return ""
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            return f"; its weights are not finite: {name} is the first"
    return "; its weights are finite: the precision, the backend or the input is to blame"
