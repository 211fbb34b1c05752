"""Rules for the effect of each operator on channels; operators without a rule lock their inputs' channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

from sparsemask.spaces.group_sparsity.tracing.record import Node, RemovesChannels, Value, tensors_in

if TYPE_CHECKING:
    from sparsemask.spaces.group_sparsity.tracing.tracer import Tracer

Axes = dict[int, np.ndarray]
"""Dimension of a tensor -> elements along it."""

_CUTS = {"split", "split_with_sizes", "chunk", "unbind", "unsafe_split"}
_RESHAPES = {"view", "_unsafe_view", "reshape", "_reshape_alias"}
# Functions in whose call the caller writes the sizes; the others (flatten, linear ...) take them from the tensor.
_SIZED = {"view", "reshape", "unflatten"}


@dataclass(frozen=True)
class _Call:
    """One operator that ran, as its rule sees it."""

    tracer: Tracer
    node: Node
    func: Callable
    args: tuple
    kwargs: dict
    outputs: list[Tensor]

    def argument(self, position: int, name: str, default: object = None):
        """An argument given by position or by name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def tie(self, a: np.ndarray, b: np.ndarray) -> None:
        self.tracer.elements.tie(a, b)

    def lock(self, elements: np.ndarray, why: str) -> None:
        self.tracer.elements.lock(elements, f"{self.tracer.where()}: {why}")

    def fresh(self, count: int, why: str | None = None) -> np.ndarray:
        """New elements, locked if there is a reason."""
        return self.tracer.elements.fresh(count, why and f"{self.tracer.where()}: {why}")

    def tie_all(self, arrays: Sequence[np.ndarray | None], why: str | None) -> np.ndarray | None:
        """Tie all known elements, and lock them if others are constants of fixed size; None if none are known."""
        known = [elements for elements in arrays if elements is not None]
        for other in known[1:]:
            self.tie(known[0], other)
        if known and len(known) < len(arrays) and why:
            self.lock(known[0], why)
        return known[0] if known else None

    def channels(self, value: Value) -> np.ndarray:
        """Elements along a tensor's channels; a constant's are locked."""
        known = value.axes.get(1)
        return self.tracer.elements.fresh(value.shape[1], "it is a constant of fixed size") if known is None else known

    @property
    def handled(self) -> bool:
        """Whether a module is running that handles the removal of channels itself."""
        return any(isinstance(module, RemovesChannels) for _, module in self.tracer.running)


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
    outputs = tensors_in(output)
    op = name[:-1] if name.endswith("_") and not name.endswith("__") else name
    varies = any(value.varies for value in inputs) and not op.startswith("new_")
    node = Node(op, tracer.running[-1][0] if tracer.running else "", tuple(inputs), ())
    node.args, node.named = tree_map_only(Tensor, tracer.value, args), tuple(kwargs)
    axes: list[Axes] = [{} for _ in outputs]
    if any(value.axes for value in inputs):
        rule = _norm if node.is_batch_norm else _RULES.get(op, _unknown)
        axes = rule(_Call(tracer, node, func, args, kwargs, outputs))
    node.outputs = tuple(tracer.remember(t, a, varies) for t, a in zip(outputs, axes, strict=True))
    if op in ("t", "transpose") and node.inputs[0].parameter:
        node.outputs[0].parameter = node.inputs[0].parameter  # a linear layer multiplies by its weight's transpose
    tracer.seen.nodes.append(node)


def _unknown(call: _Call) -> list[Axes]:
    why = f"operator {call.node.op} is not understood"
    for value in call.node.inputs:
        for elements in value.axes.values():
            call.lock(elements, why)
    # Parameters alone (a norm of weights, say) make no channels.
    return [{1: call.fresh(t.shape[1], why)} if t.dim() > 1 else {} for t in call.outputs]


def _elementwise(call: _Call) -> list[Axes]:
    out = call.outputs[0]
    axes: Axes = {}
    for dim in range(out.dim()):
        aligned = []
        for value in call.node.inputs:
            position = dim - out.dim() + len(value.shape)
            if position >= 0 and value.shape[position] == out.shape[dim]:
                aligned.append(value.axes.get(position))
        why = f"{call.node.op} with a constant of fixed size" if out.shape[dim] > 1 else None
        if (elements := call.tie_all(aligned, why)) is not None:
            axes[dim] = elements
    return [axes if t.shape == out.shape else {} for t in call.outputs]


def _constant(call: _Call) -> list[Axes]:
    return [{} for _ in call.outputs]


def _spatial(call: _Call) -> list[Axes]:
    value, *others = call.node.inputs
    same = [t.dim() == len(value.shape) and all(t.shape[d] == value.shape[d] for d in value.axes) for t in call.outputs]
    if not all(same) or any(other.axes for other in others):
        return _unknown(call)
    return [dict(value.axes) for _ in call.outputs]


def _reduce(call: _Call) -> list[Axes]:
    value = call.node.inputs[0]
    dims = call.argument(2 if call.node.op == "linalg_vector_norm" else 1, "dim")
    rank = len(value.shape)
    dims = range(rank) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {d % rank for d in dims}
    axes = {}
    for dim, elements in value.axes.items():
        if dim in gone:
            call.lock(elements, f"{call.node.op} over channels")
        else:
            axes[dim if call.outputs[0].dim() == rank else dim - sum(d < dim for d in gone)] = elements
    return [dict(axes) for _ in call.outputs]


def _concatenate(call: _Call) -> list[Axes]:
    parts = [call.tracer.value(t) for t in call.args[0] if t.dim() > 1 or t.numel()]
    rank = call.outputs[0].dim()
    along = call.argument(1, "dim", 0) % rank
    axes: Axes = {}
    for dim in range(rank):
        arrays = [value.axes.get(dim) for value in parts]
        if all(elements is None for elements in arrays):
            continue
        if dim == along:
            why = "concatenated constants of fixed size"
            filled = [call.fresh(v.shape[dim], why) if a is None else a for v, a in zip(parts, arrays, strict=True)]
            axes[dim] = np.concatenate(filled)
        else:
            axes[dim] = call.tie_all(arrays, "concatenated beside constants of fixed size")
    return [axes]


def _move(call: _Call) -> list[Axes]:
    """Operators that only move entries: repeated with the elements' numbers instead of the entries."""
    op, value = call.node.op, call.node.inputs[0]
    name, call_args = call.tracer.call
    sizes = [a for a in tree_leaves(call_args[1:]) if isinstance(a, int)] if name in _SIZED else []
    axes: list[Axes] = [{} for _ in call.outputs]
    for dim, elements in value.axes.items():
        numbers = torch.from_numpy(elements).view([-1 if d == dim else 1 for d in range(len(value.shape))])
        numbers = numbers.expand(value.shape).contiguous()
        replaced = [tree_map_only(Tensor, lambda t, n=numbers: n, a) if i == 0 else a for i, a in enumerate(call.args)]
        for k, t in enumerate(tree_leaves(call.func(*replaced, **call.kwargs))):
            changed = _along(t, dim)
            if changed is None:
                call.lock(elements, f"{op} mixes channels with positions")
                continue
            target, moved = changed
            why = f"{op} has channel numbers of its own"
            if op in _RESHAPES:
                if name in _SIZED and (len(sizes) != t.dim() or sizes[target] != -1):
                    call.tracer.seen.doubtful.append((elements, f"{call.tracer.where()}: {why}"))
            elif not call.handled and (not np.array_equal(moved, elements) or _cuts(call, dim)):
                call.lock(elements, why)
                call.lock(moved, why)
            axes[k][target] = moved
    return axes


def _cuts(call: _Call, dim: int) -> bool:
    """Whether the operator cuts a tensor into pieces along a dimension."""
    if call.node.op not in _CUTS:
        return False
    at = call.argument(1 if call.node.op == "unbind" else 2, "dim", 0)
    return at % len(call.node.inputs[0].shape) == dim


def _along(numbers: Tensor, before: int) -> tuple[int, np.ndarray] | None:
    """The single dimension along which numbers change, and the numbers; None if there are several."""
    changing = [d for d in range(numbers.dim()) if (numbers != numbers.narrow(d, 0, 1)).any()]
    if len(changing) > 1 or numbers.dim() == 0:
        return None
    dim = changing[0] if changing else min(before, numbers.dim() - 1)
    line = numbers.movedim(dim, 0).reshape(numbers.shape[dim], -1)[:, 0]
    return dim, line.numpy().copy()


def _pad(call: _Call) -> list[Axes]:
    """Constant padding; padding along channels creates new elements."""
    value, pads = call.node.inputs[0], list(call.args[1])
    axes = {}
    for dim, elements in value.axes.items():
        offset = 2 * (len(value.shape) - 1 - dim)
        before, after = pads[offset : offset + 2] or (0, 0)
        axes[dim] = elements
        if before or after:
            middle = elements[max(-before, 0) : len(elements) - max(-after, 0)]
            axes[dim] = np.concatenate([call.fresh(max(before, 0)), middle, call.fresh(max(after, 0))])
            if not call.handled:
                for channels in (elements, axes[dim]):
                    call.lock(channels, "channels padded by numbers of its own")
    return [axes]


def _norm(call: _Call) -> list[Axes]:
    channels = call.node.inputs[0].axes.get(1)
    if channels is None:
        return [{} for _ in call.outputs]
    for other in call.node.inputs[1:]:
        call.tie_all([channels, other.axes.get(0)], "batch norm with constants of fixed size")
    return [{1: channels} if i == 0 else {} for i in range(len(call.outputs))]


def _convolution(call: _Call) -> list[Axes]:
    x, weight = (call.tracer.value(t) for t in call.args[:2])
    bias = None if call.args[2] is None else call.tracer.value(call.args[2])
    transposed, groups = call.args[6], call.args[8]
    at = call.channels(x)
    if not {0, 1} <= weight.axes.keys():
        why = "convolution with weights that are not its own"
        call.lock(at, why)
        out = call.fresh(call.outputs[0].shape[1], why)
    elif groups == 1:
        out, into = weight.axes[int(transposed)], weight.axes[1 - int(transposed)]
        call.tie(into, at)
    else:
        filters = weight.axes[0]
        call.tracer.elements.lock(weight.axes[1], "channels inside a group stay together")
        out = call.fresh(call.outputs[0].shape[1]) if transposed else filters
        if transposed:
            call.tie(filters, at)
        for a, b in zip(np.split(at, groups), np.split(out, groups), strict=True):
            call.tie(np.concatenate([a, b]), a[:1])
    return [_product_of(call, at, out, weight, bias, groups)]


def _matrix_product(call: _Call) -> list[Axes]:
    """mm(x, w), addmm(bias, x, w), linear's bmm with one side of weights."""
    bias = call.tracer.value(call.args[0]) if call.node.op == "addmm" else None
    x, weight = (call.tracer.value(t) for t in call.args[-2:])
    if not x.varies or weight.varies or len(x.shape) != 2 or not {0, 1} <= weight.axes.keys():
        return _unknown(call)
    at = call.channels(x)
    call.tie(weight.axes[0], at)
    rows = {dim: elements for dim, elements in x.axes.items() if dim == 0}
    return [{**rows, **_product_of(call, at, weight.axes[1], weight, bias)}]


def _product_of(call: _Call, at: np.ndarray, out: np.ndarray, weight: Value, bias: Value | None, groups=1) -> Axes:
    """Record a product from the elements `at` to the elements `out`; the output's axes."""
    if bias is not None and 0 in bias.axes:
        call.tie(out, bias.axes[0])
    node = call.node
    node.consumes, node.makes, node.groups, node.weight, node.bias = at, out, groups, weight, bias
    return {1: out}


# Names of torch's operators by their effect on channels; in-place forms have the same name.
_OPERATORS: dict[Callable[[_Call], list[Axes]], str] = {
    _elementwise: """add sub rsub mul div maximum minimum where addcmul addcdiv lerp pow clamp clamp_min clamp_max
        eq ne lt le gt ge logical_and logical_or logical_not masked_fill copy relu relu6 hardtanh sigmoid silu gelu tanh
        leaky_relu elu celu hardswish hardsigmoid softplus mish neg abs exp log sqrt rsqrt square reciprocal erf sign
        sin cos threshold _prelu_kernel log_sigmoid_forward native_dropout dropout clone detach alias lift_fresh
        _to_copy contiguous to round floor ceil nan_to_num isfinite zeros_like ones_like full_like empty_like fill zero
        log1p expm1 atan bernoulli rrelu_with_noise""",
    # Position by position of every channel.
    _spatial: """max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices max_pool2d mkldnn_max_pool2d
        avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_avg_pool1d
        adaptive_avg_pool2d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d upsample_nearest2d
        upsample_nearest3d upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d
        _upsample_nearest_exact2d _upsample_bilinear2d_aa reflection_pad1d reflection_pad2d reflection_pad3d
        replication_pad1d replication_pad2d replication_pad3d grid_sampler_2d im2col""",
    _reduce: "mean sum amax amin var std prod linalg_vector_norm max min",
    _move: """view _unsafe_view reshape _reshape_alias permute transpose t squeeze unsqueeze expand slice select split
        split_with_sizes chunk unbind narrow index_select flip roll repeat pixel_shuffle pixel_unshuffle channel_shuffle
        native_channel_shuffle unfold view_as unsafe_split""",
    _constant: "new_ones new_zeros new_full new_empty",
    _concatenate: "cat",
    _pad: "constant_pad_nd",
    _convolution: "convolution",
    _matrix_product: "mm addmm",
}
_RULES = {op: rule for rule, names in _OPERATORS.items() for op in names.split()}
