"""Rules of normalisation and of sums, maxima and softmax: what is computed from several channels at once.

Removing channels changes statistics taken over them, even where they are zero. Such channels are locked, unless the
trace was told that the function need not stay the same (`statistics="free"`).
"""

from __future__ import annotations

from sparsemask.spaces.group_sparsity.tracing.call import Axes, Call

# Sums, to which a channel of zeros contributes nothing.
_NORMS = {"linalg_vector_norm", "norm"}
_SUMS = {"sum", *_NORMS}


def batch_norm(call: Call) -> list[Axes]:
    """Normalises every channel by itself, (B, C, ...); instance norm is one over B·C channels."""
    value = call.node.inputs[0]
    axes = dict(value.axes)
    for other in call.node.inputs[1:]:
        call.tie_all([axes.get(1), other.axes.get(0)], "batch norm with constants of fixed size")
    for dim, elements in value.axes.items():
        if dim != 1 and not call.node.running_mean:
            call.statistics(elements, f"{call.node.op} over channels")
    return [axes if i == 0 else {} for i in range(len(call.outputs))]


def group_norm(call: Call) -> list[Axes]:
    """Normalises groups of channels, (B, C, ...): whole groups are removed; one group is a layer norm."""
    value, groups = call.node.inputs[0], int(call.argument(6, "group"))
    channels = value.axes.get(1)
    if channels is None:
        return [{} for _ in call.outputs]
    for other in call.node.inputs[1:]:
        call.tie_all([channels, other.axes.get(0)], "group norm with constants of fixed size")
    if groups == 1:
        call.statistics(channels, "native_group_norm over channels")
    elif call.way([channels], 1) == 0:
        rows = channels.reshape(groups, -1)
        call.tie(rows, rows[:, :1])
        call.bind(rows[:, 0].copy())
    else:
        call.lock(channels, "native_group_norm has a number of groups of its own")
    return [dict(value.axes) if i == 0 else {} for i in range(len(call.outputs))]


def layer_norm(call: Call) -> list[Axes]:
    """Normalises over the last dimensions: layer norm, and RMS norm."""
    value, shape = call.node.inputs[0], call.args[1]
    first = len(value.shape) - len(shape)
    for dim, elements in value.axes.items():
        if dim < first:
            continue
        for other in call.node.inputs[1:]:
            call.tie_all([elements, other.axes.get(dim - first)], f"{call.node.op} with constants of fixed size")
        why = f"{call.node.op} over channels"
        call.statistics(elements, why)
        if call.tracer.free_statistics:
            if call.way([elements], 1) == 0:
                call.bind(elements)
            else:
                call.lock(elements, f"{call.node.op} has channel numbers of its own")
    return [dict(value.axes) if i == 0 else {} for i in range(len(call.outputs))]


def reduce(call: Call) -> list[Axes]:
    """Sums, means, maxima, variances, norms along dimensions."""
    op, value = call.node.op, call.node.inputs[0]
    dims = call.argument(2 if op in _NORMS else 1, "dim")
    rank = len(value.shape)
    dims = range(rank) if dims is None or dims == [] else [dims] if isinstance(dims, int) else dims
    gone = {d % rank for d in dims}
    axes = {}
    for dim, elements in value.axes.items():
        if dim not in gone:
            axes[dim if call.outputs[0].dim() == rank else dim - sum(d < dim for d in gone)] = elements
        elif op in _SUMS:
            call.sums(elements, (0, dim))
        else:
            call.statistics(elements, f"{op} over channels")
    return [dict(axes) for _ in call.outputs]


def softmax(call: Call) -> list[Axes]:
    """Softmax along one dimension."""
    value = call.node.inputs[0]
    dim = call.argument(1, "dim") % len(value.shape)
    if dim in value.axes:
        call.statistics(value.axes[dim], f"{call.node.op} over channels")
    return [dict(value.axes) for _ in call.outputs]
