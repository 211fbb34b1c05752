"""Rules of convolutions, matrix products, attention and recurrent layers."""

from __future__ import annotations

import numpy as np
from torch import nn
from torch.nn.modules.conv import _ConvNd

from sparsemask.spaces.group_sparsity.tracing.call import Axes, Call
from sparsemask.spaces.group_sparsity.tracing.movement import unknown
from sparsemask.spaces.group_sparsity.tracing.record import Value


def convolution(call: Call) -> list[Axes]:
    """Convolutions of any dimension, transposed or not, with groups or without."""
    x, weight = (call.tracer.value(t) for t in call.args[:2])
    bias = None if call.args[2] is None else call.tracer.value(call.args[2])
    transposed, groups = call.args[6], call.args[8]
    at = call.channels(x)
    for dim, elements in x.axes.items():
        if dim > 1:
            call.lock(elements, "convolution over channels as if they were positions")
    if not {0, 1} <= weight.axes.keys():
        why = "convolution with weights that are not its own"
        call.lock(at, why)
        out = call.fresh(call.outputs[0].shape[1], why)
    elif groups == 1:
        out, into = weight.axes[int(transposed)], weight.axes[1 - int(transposed)]
        call.tie(into, at)
    else:
        out = _grouped(call, at, weight, transposed, groups)
    if weight.parameter:
        for dim in range(2, len(weight.shape)):
            weight.axes.pop(dim, None)  # positions in the kernel
    rows = {dim: elements for dim, elements in x.axes.items() if dim == 0}
    return [{**rows, **_product_of(call, at, out, weight, bias, groups)}]


def _grouped(call: Call, at: np.ndarray, weight: Value, transposed: bool, groups: int) -> np.ndarray:
    """Tie the channels of a grouped convolution; the output's elements.

    Whole groups are removed where that leaves a choice, otherwise the same channels of every group.
    """
    filters = weight.axes[0]
    inner = len(at) // groups
    # A layer's own number of groups is set from its weight; others are written in the code.
    written = not (call.tracer.running and isinstance(call.tracer.running[-1][1], _ConvNd))
    ways = 2 if groups < len(at) and not transposed else 1
    way = call.way([at], ways, written) if written or ways == 2 else 0
    if way == ways and written:
        call.lock(at, "convolution with a number of groups of its own")
    if way == 0 and written:
        call.bind(at.reshape(groups, -1)[:, 0].copy())
    if way == 1 and ways == 2:
        call.node.inside = True
        rows = at.reshape(groups, inner)
        call.tie(rows, rows[:1])
        call.tie(weight.axes[1], rows[0])
        outer = filters.reshape(groups, -1)
        call.tie(outer, outer[:1])
        return filters
    call.tracer.elements.lock(weight.axes[1], "channels inside a group stay together")
    out = call.fresh(call.outputs[0].shape[1]) if transposed else filters
    if transposed:
        call.tie(filters, at)
    both = np.concatenate([at.reshape(groups, -1), out.reshape(groups, -1)], 1)
    call.tie(both, both[:, :1])
    return out


def matrix_product(call: Call) -> list[Axes]:
    """mm(x, w), addmm(bias, x, w) with one side of weights."""
    bias = call.tracer.value(call.args[0]) if call.node.op == "addmm" else None
    x, weight = (call.tracer.value(t) for t in call.args[-2:])
    if bias is None and x.varies and weight.varies:
        return [_contracted(call, x, weight, 0, 1)]
    layer = bool(call.tracer.running) and isinstance(call.tracer.running[-1][1], nn.Linear)  # it may read positions
    if not (x.varies or layer) or weight.varies or len(x.shape) != 2 or not {0, 1} <= weight.axes.keys():
        return unknown(call)
    at = call.channels(x)
    call.tie(weight.axes[0], at)
    rows = {dim: elements for dim, elements in x.axes.items() if dim == 0}
    return [{**rows, **_product_of(call, at, weight.axes[1], weight, bias)}]


def batched_product(call: Call) -> list[Axes]:
    """bmm(a, b)."""
    a, b = (call.tracer.value(t) for t in call.args[:2])
    return [_contracted(call, a, b, 0, 1)]


def _contracted(call: Call, a: Value, b: Value, first: int, second: int) -> Axes:
    """A product (..., n, k) by (..., k, m): the sum over k is exact without channels that are zero."""
    rank = len(a.shape)
    axes: Axes = {}
    for dim in range(rank - 2):
        elements = call.tie_all([a.axes.get(dim), b.axes.get(dim)], "matrix product with a constant of fixed size")
        if elements is not None:
            axes[dim] = elements
    inner = call.tie_all([a.axes.get(rank - 1), b.axes.get(rank - 2)], "matrix product with a constant of fixed size")
    if inner is not None:
        call.sums(inner, (first, rank - 1), (second, rank - 2))
    for value, dim in ((a, rank - 2), (b, rank - 1)):
        if dim in value.axes:
            axes[dim] = value.axes[dim]
    return axes


def attention(call: Call) -> list[Axes]:
    """Scaled dot products of queries, keys and values (..., tokens, width), and a mask: heads pass through."""
    query, key, value = (call.tracer.value(t) for t in call.args[:3])
    rank = len(query.shape)
    masks = [other for other in call.node.inputs[3:] if other.axes]
    axes: Axes = {}
    for dim in range(rank - 2):
        if query.shape[dim] != key.shape[dim]:
            return unknown(call, "attention with heads that share keys")
        known = [other.axes.get(dim) for other in (query, key, value)]
        known += [m.axes.get(d) for m in masks if (d := dim - rank + len(m.shape)) >= 0 and m.shape[d] > 1]
        elements = call.tie_all(known, "attention with a constant of fixed size")
        if elements is not None:
            axes[dim] = elements
    inner = call.tie_all([query.axes.get(rank - 1), key.axes.get(rank - 1)], "attention with a constant of fixed size")
    if inner is not None:
        call.sums(inner, (0, rank - 1), (1, rank - 1))
        if call.kwargs.get("scale") is None:
            call.lock(inner, "the scale of attention follows the width of heads")
    tokens = [(key, rank - 2), (value, rank - 2)]
    tokens += [(m, d) for m in masks for d in (len(m.shape) - 2, len(m.shape) - 1)]
    for other, dim in tokens:
        if dim in other.axes:
            call.lock(other.axes[dim], "attention over channels")
    for other, dim in ((query, rank - 2), (value, rank - 1)):
        if dim in other.axes:
            axes[dim] = other.axes[dim]
    return [axes, *({} for _ in call.outputs[1:])]


def recurrent(call: Call) -> list[Axes]:
    """One layer of an LSTM (T, B, C): input channels can be removed where they are zero; its states stay."""
    x, weight = call.node.inputs[:2]
    others = [*call.node.inputs[2:]]
    for value in others:
        for elements in value.axes.values():
            call.lock(elements, "states of a recurrent layer")
    call.lock(weight.axes[0], "states of a recurrent layer")
    width = call.tie_all([x.axes.get(2), weight.axes.get(1)], "recurrent layer on a constant of fixed size")
    if width is not None:
        call.sums(width, (0, 2), (1, 1))
    return [{} for _ in call.outputs]


def _product_of(
    call: Call, at: np.ndarray, out: np.ndarray, weight: Value, bias: Value | None, groups: int = 1
) -> Axes:
    """Record a product from the elements `at` to the elements `out`; the output's axes."""
    if bias is not None and 0 in bias.axes:
        call.tie(out, bias.axes[0])
    node = call.node
    node.consumes, node.makes, node.groups, node.weight, node.bias = at, out, groups, weight, bias
    return {1: out}
