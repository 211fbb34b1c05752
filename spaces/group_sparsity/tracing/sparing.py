"""Results of products without their values, on which nothing depends while channels are traced."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sparsemask.spaces.group_sparsity.tracing.slicing import memory_format

Shape = tuple[int, ...]


def spared(name: str, args: tuple[Any, ...], varies: bool) -> Tensor | tuple[Tensor, ...] | None:
    """Something in the place of a result that would take time; None for other operators, and where sizes do not fit.

    Its shape, type and memory format are those that the result would have. Products that depend on the network's input
    are zeros; weights that are standardised before they are used are taken as they are.

    Args:
        name: of the operator.
        args: its arguments.
        varies: whether it depends on the network's input.
    """
    if not varies:
        return _standardised(*args) if name == "native_batch_norm" else None
    shape_of = _SHAPES.get(name)
    shape = shape_of(*args) if shape_of is not None else None
    if shape is None:
        return None
    given = [arg for arg in args if isinstance(arg, Tensor)]
    alike = all(t.dtype == given[0].dtype and t.device == given[0].device for t in given)
    return given[0].new_zeros(shape) if alike else None


def _standardised(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    *_: float,
) -> tuple[Tensor, ...] | None:
    if not training or running_mean is not None or running_var is not None:
        return None
    statistics = x.new_zeros(2, x.shape[1])
    return x.detach(), statistics[0], statistics[1]


def _mm(a: Tensor, b: Tensor) -> Shape | None:
    fits = a.dim() == b.dim() == 2 and a.shape[1] == b.shape[0]
    return (a.shape[0], b.shape[1]) if fits else None


def _addmm(bias: Tensor, a: Tensor, b: Tensor) -> Shape | None:
    shape = _mm(a, b)
    return shape if shape is not None and tuple(bias.shape) == shape[1:] else None


def _bmm(a: Tensor, b: Tensor) -> Shape | None:
    fits = a.dim() == b.dim() == 3 and a.shape[0] == b.shape[0] and a.shape[2] == b.shape[1]
    return (a.shape[0], a.shape[1], b.shape[2]) if fits else None


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    ahead: list[int],
    groups: int,
) -> Shape | None:
    rank = x.dim() - 2
    if weight.dim() != x.dim() or any(len(numbers) != rank for numbers in (stride, padding, dilation, ahead)):
        return None
    if not all(t.is_contiguous() and memory_format(t) is torch.preserve_format for t in (x, weight)):
        return None
    out, into = weight.shape[0], weight.shape[1] * groups
    if transposed:
        out, into = weight.shape[1] * groups, weight.shape[0]
    if x.shape[1] != into or out % groups or (bias is not None and tuple(bias.shape) != (out,)):
        return None
    sizes = []
    for d in range(rank):
        size, reach = x.shape[2 + d] + 2 * padding[d], dilation[d] * (weight.shape[2 + d] - 1)
        wide = (x.shape[2 + d] - 1) * stride[d] - 2 * padding[d] + reach + ahead[d] + 1
        sizes.append(wide if transposed else (size - reach - 1) // stride[d] + 1)
    return (x.shape[0], out, *sizes) if min(sizes, default=1) > 0 else None


_SHAPES: dict[str, Callable[..., Shape | None]] = {
    "mm": _mm,
    "addmm": _addmm,
    "bmm": _bmm,
    "convolution": _convolution,
}
