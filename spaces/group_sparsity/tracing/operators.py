"""Rules for the effect of each operator on channels; operators without a rule lock their inputs' channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch._ops import OpOverload

from sparsemask.spaces.group_sparsity.tracing import movement, normalisation, products
from sparsemask.spaces.group_sparsity.tracing.call import Axes, Call
from sparsemask.spaces.group_sparsity.tracing.moves import RESHAPES
from sparsemask.spaces.group_sparsity.tracing.record import Node, Value, operator_name, replaced, tensors_in

if TYPE_CHECKING:
    from sparsemask.spaces.group_sparsity.tracing.tracer import Tracer


def follow(
    tracer: Tracer,
    func: OpOverload,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    inputs: list[Value],
    output: object,
) -> None:
    """Apply the rule of an operator that ran: assign elements to its outputs, tie and lock those of its inputs.

    Args:
        tracer: records the result.
        func: the operator.
        args: its arguments.
        kwargs: its keyword arguments.
        inputs: values of its input tensors.
        output: what it returned.
    """
    outputs = tensors_in(output)
    op = operator_name(func)
    varies = any(value.varies for value in inputs) and not op.startswith("new_")
    node = Node(op, tracer.running[-1][0] if tracer.running else "", tuple(inputs), ())
    node.args = replaced(args, Tensor, tracer.value)
    node.named = tuple(kwargs)
    axes: list[Axes] = [{} for _ in outputs]
    if any(value.axes for value in inputs) or op == "expand":
        rule = normalisation.batch_norm if node.is_batch_norm else _RULES.get(op, movement.unknown)
        axes = rule(Call(tracer, node, func, args, kwargs, outputs))
    if len(tracer.seen.nodes) in tracer.fixed:
        for value in inputs:
            for elements in value.axes.values():
                tracer.elements.lock(elements, f"{tracer.where()}: {op} uses the number of channels")
    sized = op in RESHAPES and tracer.call.name in movement.SIZED and not inputs[0].axes
    if varies and (sized or (op in ELEMENTWISE and scalars(node.args))):
        tracer.seen.written = True
    node.outputs = tuple(tracer.remember(t, a, varies) for t, a in zip(outputs, axes, strict=True))
    if node.uniform:
        node.outputs[0].uniform = node.uniform
    if op in ("t", "transpose") and node.inputs[0].parameter:
        node.outputs[0].parameter = node.inputs[0].parameter  # a linear layer multiplies by its weight's transpose
    tracer.seen.nodes.append(node)


def _elementwise(call: Call) -> list[Axes]:
    out = call.outputs[0]
    axes: Axes = {}
    for dim in range(out.dim()):
        aligned, values, expanded = [], [], False
        for value in call.node.inputs:
            position = dim - out.dim() + len(value.shape)
            if position >= 0 and value.shape[position] == out.shape[dim]:
                if position in value.uniform and position not in value.axes:
                    expanded = True
                else:
                    aligned.append(value.axes.get(position))
                    values.append(value)
        why = f"{call.node.op} with a constant of fixed size" if out.shape[dim] > 1 else None
        if (elements := call.tie_all(aligned, why, values)) is not None:
            axes[dim] = elements
            if expanded and call.way([elements], 1) == 1:
                call.lock(elements, f"{call.node.op} with a tensor expanded to numbers of its own")
    return [axes if t.shape == out.shape else {} for t in call.outputs]


def _constant(call: Call) -> list[Axes]:
    return [{} for _ in call.outputs]


def _spatial(call: Call) -> list[Axes]:
    value, *others = call.node.inputs
    positions = 2 if call.node.op == "im2col" else next((int(digit) for digit in call.node.op if digit.isdigit()), 2)
    if any(other.axes for other in others):
        return movement.unknown(call)
    axes: Axes = {}
    for dim, elements in value.axes.items():
        size = call.outputs[0].shape[dim] if dim < call.outputs[0].dim() else 0
        if dim >= len(value.shape) - positions or size % len(elements):
            call.lock(elements, f"{call.node.op} over channels")
        else:
            axes[dim] = elements.repeat(size // len(elements))  # im2col: the whole kernel of a channel, then the next
    return [dict(axes) for _ in call.outputs]


# Names of torch's operators by their effect on channels; in-place forms have the same name.
_OPERATORS: dict[Callable[[Call], list[Axes]], str] = {
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
    normalisation.reduce: "mean sum amax amin var std prod linalg_vector_norm norm max min",
    normalisation.softmax: "_softmax _log_softmax",
    normalisation.layer_norm: "native_layer_norm _fused_rms_norm rms_norm",
    normalisation.group_norm: "native_group_norm",
    movement.move: """view _unsafe_view reshape _reshape_alias permute transpose t squeeze unsqueeze slice select split
        split_with_sizes chunk unbind narrow index_select flip roll repeat pixel_unshuffle channel_shuffle
        native_channel_shuffle unfold view_as unsafe_split""",
    movement.expand: "expand",
    movement.restride: "as_strided",
    movement.stack: "stack",
    movement.glu: "glu",
    movement.take_rows: "embedding index",
    movement.pixel_shuffle: "pixel_shuffle",
    movement.concatenate: "cat",
    movement.pad: "constant_pad_nd",
    _constant: "new_ones new_zeros new_full new_empty",
    products.convolution: "convolution",
    products.matrix_product: "mm addmm",
    products.batched_product: "bmm",
    products.attention: """_scaled_dot_product_flash_attention_for_cpu _scaled_dot_product_flash_attention
        _scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention scaled_dot_product_attention
        _scaled_dot_product_fused_attention_overrideable""",
    products.recurrent: "mkldnn_rnn_layer",
}
_RULES = {op: rule for rule, names in _OPERATORS.items() for op in names.split()}
MOVES = frozenset(_OPERATORS[movement.move].split())
"""Operators whose results can be predicted by moving the elements' numbers."""
ELEMENTWISE = frozenset(_OPERATORS[_elementwise].split())
"""Operators whose numbers among the arguments are values, not sizes."""


def scalars(args: object) -> list[float]:
    """The numbers among an operator's arguments."""
    if isinstance(args, tuple | list):
        return [number for branch in args for number in scalars(branch)]
    return [float(args)] if isinstance(args, int | float) and not isinstance(args, bool) else []
