"""What an operator does to the channels of its inputs. What is not written here locks them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from spaces.group_sparsity.tracing import Node, Tracer, Value

_ELEMENTWISE = """add sub rsub mul div maximum minimum where addcmul addcdiv lerp pow clamp clamp_min clamp_max
    eq ne lt le gt ge logical_and logical_or logical_not masked_fill copy relu relu6 hardtanh sigmoid silu gelu tanh
    leaky_relu elu celu hardswish hardsigmoid softplus mish neg abs exp log sqrt rsqrt square reciprocal erf sign sin
    cos threshold _prelu_kernel log_sigmoid_forward native_dropout dropout clone detach alias lift_fresh _to_copy
    contiguous to round floor ceil nan_to_num isfinite zeros_like ones_like full_like empty_like fill zero
    log1p expm1 atan bernoulli rrelu_with_noise""".split()
# Operators on positions, channel by channel.
_SPATIAL = """max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices max_pool2d mkldnn_max_pool2d
    avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_linear1d
    upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_nearest_exact2d _upsample_bilinear2d_aa
    reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
    grid_sampler_2d im2col""".split()
_REDUCE = "mean sum amax amin var std prod linalg_vector_norm max min".split()
_MOVES = """view _unsafe_view reshape _reshape_alias permute transpose t squeeze unsqueeze expand slice select split
    split_with_sizes chunk unbind narrow index_select flip roll repeat pixel_shuffle pixel_unshuffle channel_shuffle
    native_channel_shuffle as_strided unfold constant_pad_nd view_as unsafe_split""".split()
_CUTS = {"split", "split_with_sizes", "chunk", "unbind", "unsafe_split"}
_RESHAPES = {"view", "_unsafe_view", "reshape", "_reshape_alias"}
# Functions in whose call the caller writes the sizes; the others (flatten, linear ...) take them from the tensor.
_SIZED = {"view", "reshape", "unflatten"}


def follow(tracer: Tracer, func, name: str, args: tuple, kwargs: dict, inputs: list[Value], output) -> None:
    """Give every output of an operator its elements; tie and lock those of the inputs."""
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
        there = []
        for value in node.inputs:
            own = dim - out.dim() + len(value.shape)
            if own >= 0 and value.shape[own] == out.shape[dim]:
                there.append(value.axes.get(own))
        known = [elements for elements in there if elements is not None]
        if not known:
            continue
        for other in known[1:]:
            tracer.elements.tie(known[0], other)
        if len(known) < len(there) and out.shape[dim] > 1:
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
            whole = [
                tracer.elements.fresh(value.shape[d], reason) if a is None else a
                for value, a in zip(parts, arrays, strict=True)
            ]
            axes[d] = np.concatenate(whole)
        else:
            for other in known[1:]:
                tracer.elements.tie(known[0], other)
            if len(known) < len(parts):
                tracer.elements.lock(known[0], f"{tracer.where()}: concatenated beside constants of fixed size")
            axes[d] = known[0]
    return [axes]


def _move(tracer: Tracer, node: Node, func, args, kwargs, outputs) -> list[dict]:
    """Operators that only carry entries about: done once more with the elements' numbers in place of the entries."""
    value = node.inputs[0]
    name, given = tracer.call
    told = [a for a in tree_leaves(given[1:]) if isinstance(a, int)] if name in _SIZED else []
    opened = any(callable(getattr(m, "remove_channels", None)) for m in tracer.owners)
    axes: list[dict] = [{} for _ in outputs]
    for dim, elements in value.axes.items():
        numbers = torch.from_numpy(elements).view([-1 if d == dim else 1 for d in range(len(value.shape))])
        numbers = numbers.expand(value.shape).contiguous()
        put = [tree_map_only(Tensor, lambda t, n=numbers: n, a) if i == 0 else a for i, a in enumerate(args)]
        extra = {"value": -1} if node.op == "constant_pad_nd" else {}
        if extra:
            put = put[:2]
        moved = tree_leaves(func(*put, **{**kwargs, **extra}))
        for k, t in enumerate(moved):
            found = _along(t, dim)
            if found is None:
                tracer.elements.lock(elements, f"{tracer.where()}: {node.op} mixes channels with positions")
                continue
            place, line = found
            same = len(line) == len(elements) and bool((line == elements).all())
            if (line < 0).any():
                line[line < 0] = tracer.elements.fresh(int((line < 0).sum()))
            reason = f"{tracer.where()}: {node.op} has channel numbers of its own"
            if node.op in _RESHAPES:
                if name in _SIZED and (len(told) != t.dim() or told[place] != -1):
                    tracer.seen.doubtful.append((elements, reason))
            elif not opened and (not same or (node.op in _CUTS and _cut_at(node, args, kwargs, dim))):
                tracer.elements.lock(elements, reason)
                tracer.elements.lock(line, reason)
            axes[k][place] = line
    return axes


def _cut_at(node: Node, args: tuple, kwargs: dict, dim: int) -> bool:
    at = kwargs.get("dim", args[1] if node.op == "unbind" and len(args) > 1 else args[2] if len(args) > 2 else 0)
    return at % len(node.inputs[0].shape) == dim


def _along(numbers: Tensor, before: int) -> tuple[int, np.ndarray] | None:
    """The one dimension along which numbers change, and the numbers; None where there are several."""
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
        own = weight.axes[0]
        elements.lock(weight.axes[1], "channels inside a group stay together")
        out = elements.fresh(wide) if transposed else own
        if transposed:
            elements.tie(own, at)
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
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_SPATIAL, _spatial),
    **dict.fromkeys(_REDUCE, _reduce),
    **dict.fromkeys(_MOVES, _move),
    **dict.fromkeys(["mm", "addmm"], _product),
    **dict.fromkeys(["new_ones", "new_zeros", "new_full", "new_empty"], _constant),
    "cat": _concatenate,
    "convolution": _convolution,
}
