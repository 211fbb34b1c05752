"""Rules of operators that only move entries: reshapes, cuts, permutations.

:mod:`sparsemask.spaces.group_sparsity.tracing.moves` shows where channels go. Where sizes or positions are written in
the code, the trial on a copy (:mod:`sparsemask.spaces.group_sparsity.tracing.trial`) decides whether they follow the
channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sparsemask.spaces.group_sparsity.tracing.call import Axes, Call
from sparsemask.spaces.group_sparsity.tracing.moves import RESHAPES, Moved, moved
from sparsemask.spaces.group_sparsity.tracing.numbers import Tagged

_CUTS = {"split", "split_with_sizes", "chunk", "unsafe_split", "slice", "narrow"}
# Functions in whose call the caller writes the sizes; the others (flatten, linear ...) take them from the tensor.
SIZED = {"view", "reshape", "unflatten", "multi_head_attention_forward"}
_TAKES = {"select", "unbind"}
_NUMBERED = {"roll", "index_select"}  # along channels they tell these by their numbers


def move(call: Call) -> list[Axes]:
    """Views, permutations, cuts and copies."""
    value = call.node.inputs[0]
    if call.node.op in RESHAPES and isinstance(call.args[1], torch.dtype):
        return unknown(call, "entries are taken for those of another type")
    axes: list[Axes] = [{} for _ in call.outputs]
    for dim, elements in value.axes.items():
        if len(elements) == 1 and call.node.op in RESHAPES and any(t.dim() != len(value.shape) for t in call.outputs):
            continue  # never removed, and merged with others it is none of them
        results = moved(call.func, call.args, call.kwargs, elements, dim, value.shape)
        lines = [result.along(dim, elements) for result in results]
        if call.node.op in _TAKES and _dimension(call) == dim:
            call.lock(elements, f"{call.node.op} takes channels by their numbers")
            continue
        known = [line for line in lines if line is not None]
        if len(known) < len(lines):
            _split(call, elements, results, axes)
            continue
        targets, arrays = [line[0] for line in known], [line[1] for line in known]
        if not call.handled and not _decided(call, dim, elements, results[0], targets, arrays):
            call.lock(elements, f"{call.node.op} has channel numbers of its own")
        for k, (target, array) in enumerate(zip(targets, arrays, strict=True)):
            _place(call, axes[k], target, array)
    return axes


def _place(call: Call, axes: Axes, dim: int, elements: np.ndarray) -> None:
    """Put elements along a dimension of a result."""
    if dim in axes:
        for both in (axes[dim], elements):
            call.lock(both, f"{call.node.op} merges two kinds of channels")
    axes[dim] = elements


def _dimension(call: Call) -> int:
    """The dimension along which the operator cuts."""
    position = {"unbind": 1, "select": 1, "slice": 1, "narrow": 1}.get(call.node.op, 2)
    return int(call.argument(position, "dim", 0)) % len(call.node.inputs[0].shape)


def _decided(
    call: Call, dim: int, elements: np.ndarray, first: Moved, targets: Sequence[int], arrays: Sequence[np.ndarray]
) -> bool:
    """Whether channels can go here; asks for the way where sizes or positions are written in the code."""
    op = call.node.op
    if op in RESHAPES:
        sizes = call.sizes() if call.function in SIZED else []
        if call.function not in SIZED or (len(sizes) == len(first.shape) and sizes[targets[0]] == -1):
            return True
        possible = call.way([elements], 1) == 0
        if possible:
            _bind_view(call, len(first.shape), targets[0], arrays[0], elements)
        return possible
    if op in _CUTS and _dimension(call) == dim:
        return _cut(call, elements, arrays)
    if all(np.array_equal(array, elements) for array in arrays):
        return True
    if op in _NUMBERED:
        return False
    _interleave(call, elements)
    return call.way([elements], 1) == 0


def _interleave(call: Call, elements: np.ndarray) -> None:
    """Tie what a shuffle of channels exchanges: entry i of every group."""
    if call.node.op in ("channel_shuffle", "native_channel_shuffle"):
        groups = int(call.argument(1, "groups"))
        call.tie(elements.reshape(groups, -1), elements.reshape(groups, -1)[:1])


def _cut(call: Call, elements: np.ndarray, parts: Sequence[np.ndarray]) -> bool:
    """Parts of a tensor's channels: of free sizes, or of equal ones, whose entries i go together."""
    if len(parts) == 1 and np.array_equal(parts[0], elements) and call.node.op != "split_with_sizes":
        return True
    size, step = len(parts[0]), int(call.argument(4, "step", 1)) if call.node.op == "slice" else 1
    even = size > 0 and len(elements) % (step if step > 1 else size) == 0
    equal_only = call.node.op in ("split", "chunk", "unsafe_split")  # one number gives the size of all parts
    ways = ([] if equal_only or step > 1 else ["free"]) + (["equal"] if even else [])
    ends = _ends(call, elements)
    way = call.way([*parts, *ends, *(elements[len(end) :] for end in ends)], len(ways))
    if way == len(ways):
        return False
    if ways[way] == "equal":
        rows = elements.reshape(-1, step).T if step > 1 else elements.reshape(-1, size)
        call.tie(rows, rows[:1])
    _bind_cut(call, elements, parts, ends)
    return True


def _bind_cut(call: Call, elements: np.ndarray, parts: Sequence[np.ndarray], ends: Sequence[np.ndarray]) -> None:
    """Let the numbers in the call follow: ends of a slice, sizes of parts, or what they were computed from."""
    sizes = call.sizes()
    if call.node.op == "split_with_sizes" and len(sizes) >= len(parts):
        for size, part in zip(sizes, parts, strict=False):
            call.bind_sizes([size], part, elements)
    else:
        call.bind(*ends, *parts, elements)


def _ends(call: Call, elements: np.ndarray) -> list[np.ndarray]:
    """Slices: the channels before its start and before its end, which its numbers count."""
    if call.node.op != "slice":
        return []
    size = len(elements)
    start, end = (call.argument(2, "start"), call.argument(3, "end"))
    start, end = start or 0, size if end is None else end
    bounds = [min(max(n + size if n < 0 else n, 0), size) for n in (start, end)]
    return [elements[:n] for n in bounds if 0 < n < size]


def _split(call: Call, elements: np.ndarray, results: Sequence[Moved], axes: list[Axes]) -> None:
    """A view that splits channels into several dimensions: the channels go along one of them."""
    for k, result in enumerate(results):
        dims = [] if result.empty else [*reversed(result.dims)]  # the innermost first
        way = len(dims)
        if call.node.op in RESHAPES and not call.handled:
            way = call.way([elements], len(dims))
        if way == len(dims):
            splits = "splits channels into sizes that do not follow them" if dims else "mixes channels with positions"
            call.lock(elements, f"{call.node.op} {splits}")
            continue
        rows = result.rows(dims[way])
        call.tie(rows, rows[:, :1])
        _place(call, axes[k], dims[way], rows[:, 0].copy())
        _bind_view(call, len(result.shape), dims[way], rows[:, 0].copy(), elements)


def _bind_view(call: Call, rank: int, dim: int, moved: np.ndarray, elements: np.ndarray) -> None:
    """Let the size along `dim` follow the channels there; other sizes only as far as they were computed from both."""
    sizes = call.sizes()
    if len(sizes) != rank:
        call.bind(moved, elements)
        return
    call.bind_sizes([sizes[dim]], moved, elements)
    others = [size for d, size in enumerate(sizes) if d != dim and isinstance(size, Tagged) and size.source is None]
    call.bind_sizes(others, elements)


def expand(call: Call) -> list[Axes]:
    """Copies along dimensions of one entry, which fit any number of channels."""
    value, out = call.node.inputs[0], call.outputs[0]
    offset = out.dim() - len(value.shape)
    spread = {d for d in range(out.dim()) if out.shape[d] > 1 and (d < offset or value.shape[d - offset] == 1)}
    call.node.uniform = frozenset(spread)
    return [{d + offset: elements for d, elements in value.axes.items() if d + offset not in spread}]


def pixel_shuffle(call: Call) -> list[Axes]:
    """Groups of r² channels become one channel each."""
    value, factor = call.node.inputs[0], int(call.argument(1, "upscale_factor"))
    dim = len(value.shape) - 3
    axes = {d: elements for d, elements in value.axes.items() if d < dim}
    for position in (dim + 1, dim + 2):
        if position in value.axes:
            call.lock(value.axes[position], "pixel_shuffle mixes them with positions")
    if dim in value.axes:
        groups = value.axes[dim].reshape(-1, factor**2)
        call.tie(groups, groups[:, :1])
        axes[dim] = groups[:, 0].copy()
    return [axes]


def restride(call: Call) -> list[Axes]:
    """as_strided, where torch uses it to give a result its memory format."""
    value = call.node.inputs[0]
    if call.function == "as_strided" or call.outputs[0].shape != value.shape:
        return unknown(call)
    return [dict(value.axes)]


def stack(call: Call) -> list[Axes]:
    """Tensors along a new dimension."""
    parts = [call.tracer.value(t) for t in call.args[0]]
    at = call.argument(1, "dim", 0) % call.outputs[0].dim()
    axes: Axes = {}
    for dim in range(len(parts[0].shape)):
        elements = call.tie_all([value.axes.get(dim) for value in parts], "stacked beside constants of fixed size")
        if elements is not None:
            axes[dim + (dim >= at)] = elements
    return [axes]


def take_rows(call: Call) -> list[Axes]:
    """Entries by integer indices along the leading dimensions (tables); embeddings."""
    table = call.node.inputs[0]
    indices = [call.args[1]] if call.node.op == "embedding" else call.args[1]
    plain = all(isinstance(i, Tensor) and i.dtype not in (torch.bool, torch.uint8) for i in indices)
    if not plain or any(call.tracer.value(i).axes for i in indices):
        return unknown(call)
    added = torch.broadcast_shapes(*(i.shape for i in indices))
    axes: Axes = {}
    for dim, elements in table.axes.items():
        if dim < len(indices):
            call.lock(elements, f"{call.node.op} takes entries by their numbers")
        else:
            axes[dim - len(indices) + len(added)] = elements
    return [axes]


def unknown(call: Call, why: str | None = None) -> list[Axes]:
    """An operator without a rule: its inputs' channels are locked."""
    why = why or f"operator {call.node.op} is not understood"
    for value in call.node.inputs:
        for elements in value.axes.values():
            call.lock(elements, why)
    # Parameters alone (a norm of weights, say) make no channels.
    return [{1: call.fresh(t.shape[1], why)} if t.dim() > 1 else {} for t in call.outputs]


def glu(call: Call) -> list[Axes]:
    """The first half of the channels times gates from the other."""
    value = call.node.inputs[0]
    at = call.argument(1, "dim", -1) % len(value.shape)
    axes = dict(value.axes)
    if at in axes:
        first, second = np.split(axes[at], 2)
        call.tie(first, second)
        axes[at] = first
    return [axes]


def pad(call: Call) -> list[Axes]:
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


def concatenate(call: Call) -> list[Axes]:
    """Tensors one after the other along a dimension."""
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
            varying = [value.axes.get(dim) for value in parts if value.varies]
            if varying and all(elements is None for elements in varying):
                for elements in (array for array in arrays if array is not None):
                    call.lock(elements, why)  # entries for positions
                continue
            filled = [call.fresh(v.shape[dim], why) if a is None else a for v, a in zip(parts, arrays, strict=True)]
            axes[dim] = np.concatenate(filled)
        else:
            tied = call.tie_all(arrays, "concatenated beside constants of fixed size", parts)
            if tied is not None:
                axes[dim] = tied
    return [axes]
