"""Rules for the effect of each operator on channels; operators without a rule lock their inputs' channels."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from sparsemask.spaces.group_sparsity import operator_names as names
from sparsemask.spaces.group_sparsity.tracing import Node, RemovesChannels, Tracer, Value


def follow(tracer: Tracer, func, name: str, args: tuple, kwargs: dict, inputs: list[Value], output) -> None:
    """Apply the rule of an operator that ran: assign elements to its outputs, tie and lock those of its inputs.

    Args:
        tracer: records the result.
        func: the operator.
        name: its name.
        args: its arguments.
        kwargs: its keyword arguments.
        inputs: values of its input tensors.
        output: what it returned.
    """
    outputs = [t for t in tree_leaves(output) if isinstance(t, Tensor)]
    op = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    varies = any(value.varies for value in inputs) and not op.startswith("new_")
    node = Node(op, tracer.stack[-1] if tracer.stack else "", tuple(inputs), ())
    node.args, node.named = tree_map_only(Tensor, tracer.value, args), tuple(kwargs)
    if not any(value.axes for value in inputs):
        axes = [{} for _ in outputs]
    else:
        axes = _rule(op)(tracer, node, func, args, kwargs, outputs)
    node.outputs = tuple(tracer.remember(t, a, varies) for t, a in zip(outputs, axes, strict=True))
    if op in ("t", "transpose") and node.inputs[0].parameter:
        node.outputs[0].parameter = node.inputs[0].parameter  # a linear layer multiplies by its weight's transpose
    tracer.seen.nodes.append(node)


def _rule(op: str):
    if op in _TABLE:
        return _TABLE[op]
    return _norm if op.endswith("batch_norm") or op.startswith("_batch_norm") else _unknown


def _unknown(tracer: Tracer, node: Node, func, args, kwargs, outputs) -> list[dict]:
    reason = f"{tracer.where()}: operator {node.op} is not understood"
    for value in node.inputs:
        for elements in value.axes.values():
            tracer.elements.lock(elements, reason)
    # Parameters alone (a norm of weights, say) make no channels.
    return [{1: tracer.elements.fresh(t.shape[1], reason)} if t.dim() > 1 else {} for t in outputs]


def _elementwise(tracer: Tracer, node: Node, func, args, kwargs, outputs) -> list[dict]:
    out = outputs[0]
    axes: dict[int, np.ndarray] = {}
    for dim in range(out.dim()):
        aligned = []
        for value in node.inputs:
            position = dim - out.dim() + len(value.shape)
            if position >= 0 and value.shape[position] == out.shape[dim]:
                aligned.append(value.axes.get(position))
        known = [elements for elements in aligned if elements is not None]
        if not known:
            continue
        for other in known[1:]:
            tracer.elements.tie(known[0], other)
        if len(known) < len(aligned) and out.shape[dim] > 1:
            tracer.elements.lock(known[0], f"{tracer.where()}: {node.op} with a constant of fixed size")
        axes[dim] = known[0]
    return [axes if t.shape == out.shape else {} for t in outputs]


def _constant(tracer: Tracer, node: Node, func, args, kwargs, outputs) -> list[dict]:
    return [{} for _ in outputs]


def _spatial(tracer: Tracer, node: Node, func, args, kwargs, outputs) -> list[dict]:
    value = node.inputs[0]
    same = [t.dim() == len(value.shape) and all(t.shape[d] == value.shape[d] for d in value.axes) for t in outputs]
    if not all(same) or any(other.axes for other in node.inputs[1:]):
        return _unknown(tracer, node, func, args, kwargs, outputs)
    return [dict(value.axes) for _ in outputs]


def _reduce(tracer: Tracer, node: Node, func, args, kwargs, outputs) -> list[dict]:
    value = node.inputs[0]
    dims = args[1] if len(args) > 1 else kwargs.get("dim")
    if node.op == "linalg_vector_norm":
        dims = args[2] if len(args) > 2 else kwargs.get("dim")
    rank = len(value.shape)
    dims = range(rank) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {d % rank for d in dims}
    axes = {}
    for dim, elements in value.axes.items():
        if dim in gone:
            tracer.elements.lock(elements, f"{tracer.where()}: {node.op} over channels")
        else:
            axes[dim if outputs[0].dim() == rank else dim - sum(d < dim for d in gone)] = elements
    return [dict(axes) for _ in outputs]


def _concatenate(tracer: Tracer, node: Node, func, args, kwargs, outputs) -> list[dict]:
    parts = [tracer.value(t) for t in args[0] if t.dim() > 1 or t.numel()]
    rank = outputs[0].dim()
    dim = (args[1] if len(args) > 1 else kwargs.get("dim", 0)) % rank
    axes: dict[int, np.ndarray] = {}
    for d in range(rank):
        arrays = [value.axes.get(d) for value in parts]
        known = [a for a in arrays if a is not None]
        if not known:
            continue
        if d == dim:
            reason = f"{tracer.where()}: concatenated constants of fixed size"
            filled = [
                tracer.elements.fresh(value.shape[d], reason) if a is None else a
                for value, a in zip(parts, arrays, strict=True)
            ]
            axes[d] = np.concatenate(filled)
        else:
            for other in known[1:]:
                tracer.elements.tie(known[0], other)
            if len(known) < len(parts):
                tracer.elements.lock(known[0], f"{tracer.where()}: concatenated beside constants of fixed size")
            axes[d] = known[0]
    return [axes]


def _move(tracer: Tracer, node: Node, func, args, kwargs, outputs) -> list[dict]:
    """Operators that only move entries: repeated with the elements' numbers instead of the entries."""
    value = node.inputs[0]
    name, call_args = tracer.call
    sizes = [a for a in tree_leaves(call_args[1:]) if isinstance(a, int)] if name in names.SIZED else []
    follows = _opened(tracer)
    axes: list[dict] = [{} for _ in outputs]
    for dim, elements in value.axes.items():
        numbers = torch.from_numpy(elements).view([-1 if d == dim else 1 for d in range(len(value.shape))])
        numbers = numbers.expand(value.shape).contiguous()
        replaced = [tree_map_only(Tensor, lambda t, n=numbers: n, a) if i == 0 else a for i, a in enumerate(args)]
        moved = tree_leaves(func(*replaced, **kwargs))
        for k, t in enumerate(moved):
            changed = _along(t, dim)
            if changed is None:
                tracer.elements.lock(elements, f"{tracer.where()}: {node.op} mixes channels with positions")
                continue
            target, moved_elements = changed
            same = len(moved_elements) == len(elements) and bool((moved_elements == elements).all())
            reason = f"{tracer.where()}: {node.op} has channel numbers of its own"
            if node.op in names.RESHAPES:
                if name in names.SIZED and (len(sizes) != t.dim() or sizes[target] != -1):
                    tracer.seen.doubtful.append((elements, reason))
            elif not follows and (not same or (node.op in names.CUTS and _cut_at(node, args, kwargs, dim))):
                tracer.elements.lock(elements, reason)
                tracer.elements.lock(moved_elements, reason)
            axes[k][target] = moved_elements
    return axes


def _opened(tracer: Tracer) -> bool:
    """Whether a module is running that handles the removal of channels itself."""
    return any(isinstance(module, RemovesChannels) for module in tracer.owners)


def _pad(tracer: Tracer, node: Node, func, args, kwargs, outputs) -> list[dict]:
    """Constant padding; padding along channels creates new elements."""
    value, pads = node.inputs[0], list(args[1])
    axes = {}
    for dim, elements in value.axes.items():
        offset = 2 * (len(value.shape) - 1 - dim)
        before, after = pads[offset : offset + 2] or (0, 0)
        axes[dim] = elements
        if before or after:
            new = tracer.elements.fresh(max(before, 0)), tracer.elements.fresh(max(after, 0))
            middle = elements[max(-before, 0) : len(elements) - max(-after, 0)]
            axes[dim] = np.concatenate([new[0], middle, new[1]])
            if not _opened(tracer):
                for channels in (elements, axes[dim]):
                    tracer.elements.lock(channels, f"{tracer.where()}: channels padded by numbers of its own")
    return [axes]


def _cut_at(node: Node, args: tuple, kwargs: dict, dim: int) -> bool:
    at = kwargs.get("dim", args[1] if node.op == "unbind" and len(args) > 1 else args[2] if len(args) > 2 else 0)
    return at % len(node.inputs[0].shape) == dim


def _along(numbers: Tensor, before: int) -> tuple[int, np.ndarray] | None:
    """The single dimension along which numbers change, and the numbers; None if there are several."""
    changing = [d for d in range(numbers.dim()) if (numbers != numbers.narrow(d, 0, 1)).any()]
    if len(changing) > 1 or numbers.dim() == 0:
        return None
    dim = changing[0] if changing else min(before, numbers.dim() - 1)
    line = numbers.movedim(dim, 0).reshape(numbers.shape[dim], -1)[:, 0]
    return dim, line.numpy().copy()


def _norm(tracer: Tracer, node: Node, func, args, kwargs, outputs) -> list[dict]:
    value = node.inputs[0]
    channels = value.axes.get(1)
    for other in node.inputs[1:]:
        if channels is not None and 0 in other.axes:
            tracer.elements.tie(channels, other.axes[0])
        elif channels is not None:
            tracer.elements.lock(channels, f"{tracer.where()}: batch norm with constants of fixed size")
    return [{1: channels} if i == 0 and channels is not None else {} for i in range(len(outputs))]


def _convolution(tracer: Tracer, node: Node, func, args, kwargs, outputs) -> list[dict]:
    x, weight = (tracer.value(t) for t in args[:2])
    bias = None if args[2] is None else tracer.value(args[2])
    transposed, groups = args[6], args[8]
    elements = tracer.elements
    reason = f"{tracer.where()}: convolution with weights that are not its own"
    at = x.axes.get(1)
    if at is None:
        at = elements.fresh(x.shape[1], "it is a constant of fixed size")
    if not {0, 1} <= weight.axes.keys():
        elements.lock(at, reason)
        out = elements.fresh(outputs[0].shape[1], reason)
    elif groups == 1:
        out, into = weight.axes[int(transposed)], weight.axes[1 - int(transposed)]
        elements.tie(into, at)
    else:
        wide = outputs[0].shape[1]
        filters = weight.axes[0]
        elements.lock(weight.axes[1], "channels inside a group stay together")
        out = elements.fresh(wide) if transposed else filters
        if transposed:
            elements.tie(filters, at)
        for a, b in zip(np.split(at, groups), np.split(out, groups), strict=True):
            elements.tie(np.concatenate([a, b]), a[:1])
    if bias is not None and 0 in bias.axes:
        elements.tie(out, bias.axes[0])
    node.consumes, node.makes, node.groups, node.weight, node.bias = at, out, groups, weight, bias
    return [{1: out}]


def _product(tracer: Tracer, node: Node, func, args, kwargs, outputs) -> list[dict]:
    """mm(x, w), addmm(bias, x, w), linear's bmm with one side of weights."""
    bias = tracer.value(args[0]) if node.op in ("addmm", "baddbmm") else None
    x, weight = (tracer.value(t) for t in args[-2:])
    if x.varies and not weight.varies and len(x.shape) == 2 and {0, 1} <= weight.axes.keys():
        at = x.axes.get(1)
        if at is None:
            at = tracer.elements.fresh(x.shape[1], "it is a constant of fixed size")
        tracer.elements.tie(weight.axes[0], at)
        out = weight.axes[1]
        if bias is not None and 0 in bias.axes:
            tracer.elements.tie(out, bias.axes[0])
        node.consumes, node.makes, node.weight, node.bias = at, out, weight, bias
        return [{**{d: a for d, a in x.axes.items() if d == 0}, 1: out}]
    return _unknown(tracer, node, func, args, kwargs, outputs)


_TABLE = {
    **dict.fromkeys(names.ELEMENTWISE, _elementwise),
    **dict.fromkeys(names.SPATIAL, _spatial),
    **dict.fromkeys(names.REDUCE, _reduce),
    **dict.fromkeys(names.MOVES, _move),
    **dict.fromkeys(["mm", "addmm"], _product),
    **dict.fromkeys(["new_ones", "new_zeros", "new_full", "new_empty"], _constant),
    "cat": _concatenate,
    "constant_pad_nd": _pad,
    "convolution": _convolution,
}
