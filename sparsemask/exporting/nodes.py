"""ONNX files that skip: the sparse operators of a network as nodes of the domain "sparsemask".

While a network is traced, a call of a sparse operator becomes a node; what the node tells the kernels is worked out
before, in a call of the network on its example. Nodes take and give features with their channels last, and
transpositions that meet are taken out by ONNX Runtime.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.overrides import TorchFunctionMode

from sparsemask.errors import UseError
from sparsemask.ops import dispatch, packed_point_network
from sparsemask.ops.conv import geometry_of
from sparsemask.ops.geometry import Geometry
from sparsemask.ops.packed import Packed
from sparsemask.ops.predict_mask import WIDEST

if TYPE_CHECKING:
    import onnx

    from sparsemask.backends.native.onnx_plan import Plan

DOMAIN = "sparsemask"
VERSION = 1  # of the domain
_NUMBER, _DATA, _PLAN = "number", "data", "version"  # attributes of a node


@dataclass(frozen=True)
class _Node:
    """A call of an operator as a node.

    Attributes:
        data: what is computed, also by other nodes.
        plan: makes what the kernels are told, of weights that are known.
        shape: of the output.
        back: what the operator returns, of the output.
        kind: of numbers.
    """

    data: Sequence[Tensor | _Node]
    plan: Callable[[], Plan]
    shape: Sequence[Any]
    back: Callable[[Tensor], Any]
    kind: torch.dtype = torch.float32

    def parts(self) -> Iterator[_Node]:
        """The node and those that it reads, these first."""
        for one in self.data:
            if isinstance(one, _Node):
                yield from one.parts()
        yield self


def _rows(x: Tensor) -> Tensor:
    return x.movedim(1, -1)


def _back(rows: Tensor) -> Tensor:
    return rows.movedim(-1, 1)


def _inverted_residual(x: Tensor, mask: Tensor | None, *given: Any) -> _Node:
    from sparsemask.backends.native import onnx_plan

    *weights, stride, shortcut, _ = given
    size = x.shape[2:] if stride == 1 else [(n + 1) // 2 for n in x.shape[2:]]
    return _Node(
        [_rows(x), *([] if mask is None else [mask])],
        lambda: onnx_plan.inverted_residual(weights, stride, shortcut),
        [x.shape[0], *size, len(weights[-3])],
        _back,
    )


def _predict_mask(x: Tensor, *given: Any) -> _Node:
    from sparsemask.backends.native import onnx_plan

    *weights, threshold, limited, _ = given
    if len(weights[0]) > WIDEST:
        raise UseError(f"a mask branch of {len(weights[0])} channels, more than {WIDEST}, has no node")
    size = x.shape[2:] if weights[4].shape[-1] == 3 else [(n + 1) // 2 for n in x.shape[2:]]
    plan = lambda: onnx_plan.predict_mask(weights, threshold, limited)
    return _Node([_rows(x)], plan, [x.shape[0], 1, *size], lambda mask: mask, torch.bool)


def _multiscale_sum(
    xs: list[Tensor], weights: list[Tensor], limited: list[bool], bias: Tensor, mask: Tensor | None, dense: int,
    height: Any, width: Any, _backend: str,
) -> _Node:  # fmt: skip
    from sparsemask.backends.native import multiscale_sum, onnx_plan

    if len(xs) > multiscale_sum.MOST:
        raise UseError(f"a stage of {len(xs)} features, more than {multiscale_sum.MOST}, has no node")
    size = torch.stack([torch.scalar_tensor(n, dtype=torch.int64) for n in (height, width)])
    return _Node(
        [*map(_rows, xs), size, *([] if mask is None else [mask])],
        lambda: onnx_plan.multiscale_sum(weights, limited, bias, dense),
        [xs[0].shape[0], height, width, len(bias)],
        _back,
    )


def _conv(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, in_dense: Tensor, out_dense: Tensor,
          stride: Any, padding: Any, dilation: Any, output_padding: Any, transposed: bool, groups: int,
          activation: str, _backend: str) -> _Node:  # fmt: skip
    from sparsemask.backends.native import onnx_plan

    geometry = geometry_of(weight, stride, padding, dilation, output_padding, transposed, groups)
    return _Node(
        [_rows(x), mask],
        lambda: onnx_plan.conv(weight, bias, in_dense, out_dense, geometry, activation),
        [x.shape[0], *mask.shape[2:], len(out_dense)],
        _back,
    )


def _kept_conv(x: Tensor, weight: Tensor, bias: Tensor | None, mask: Tensor, places: Tensor, padding: Any,
               dilation: Any, groups: int, kept: bool, activation: str, slopes: Tensor | None,
               _backend: str) -> _Node:  # fmt: skip
    from sparsemask.backends.native import onnx_plan

    geometry = geometry_of(weight, (1, 1), padding, dilation, (0, 0), False, groups)
    return _Node(
        [_rows(x), mask, _kept_tables(mask, places, geometry)],
        lambda: onnx_plan.kept_conv(weight, bias, geometry, kept, activation, slopes),
        [1, places.shape[0], 1, len(weight)],
        _back,
    )


def _kept_tables(mask: Tensor, places: Tensor, geometry: Geometry) -> _Node:
    from sparsemask.backends.native import onnx_plan
    from sparsemask.backends.native.kept import without_groups

    padded = mask.shape[0]
    for size, kernel, dilation in zip(mask.shape[2:], geometry.kernel, geometry.dilation, strict=True):
        padded = padded * (size + (kernel - 1) * dilation)
    return _Node(
        [mask], lambda: onnx_plan.kept_tables(without_groups(geometry)), [padded + 2 * places.shape[0] + 1],
        lambda tables: tables, torch.int32,
    )  # fmt: skip


def _merge_kept(
    y: Tensor, x: Tensor, mask: Tensor, _places: Tensor, weight: Tensor, bias: Tensor | None, _backend: str
) -> _Node:
    from sparsemask.backends.native import onnx_plan

    groups = x.shape[1] // weight.shape[1]
    geometry = geometry_of(weight, (1, 1), (0, 0), (1, 1), (0, 0), False, groups)
    return _Node(
        [_rows(y), _rows(x), mask],
        lambda: onnx_plan.merge_kept(weight, bias, geometry),
        [x.shape[0], *x.shape[2:], len(weight)],
        _back,
    )


def _joined_conv(
    xs: list[Tensor], weight: Tensor, bias: Tensor | None, add: Tensor | None, activation: str, _backend: str
) -> _Node:
    from sparsemask.backends.native import onnx_plan

    return _Node(
        [*map(_rows, xs), *([] if add is None else [_rows(add)])],
        lambda: onnx_plan.joined_conv(weight, bias, [x.shape[1] for x in xs], activation),
        [xs[0].shape[0], *xs[0].shape[2:], len(weight)],
        _back,
    )


def _block(
    x: Tensor, mask: Tensor, weights: list[Tensor], dense: Tensor, collect_weight: Tensor, collect_bias: Tensor | None,
    activation: str, _backend: str, attention: Sequence[Tensor] = (),
) -> _Node:  # fmt: skip
    from sparsemask.backends.native import onnx_plan

    return _Node(
        [_rows(x), mask],
        lambda: onnx_plan.block(weights, dense, collect_weight, collect_bias, activation, attention),
        [x.shape[0], *x.shape[2:], len(collect_weight)],
        _back,
    )


def _attended_block(
    x: Tensor, mask: Tensor, weights: list[Tensor], dense: Tensor, collect_weight: Tensor, collect_bias: Tensor | None,
    attention: list[Tensor], activation: str, backend: str,
) -> _Node:  # fmt: skip
    return _block(x, mask, weights, dense, collect_weight, collect_bias, activation, backend, attention)


def _correlation_volume(left: Tensor, right: Tensor, levels: int, groups: int) -> _Node:
    from sparsemask.backends.native import onnx_plan

    # A group's channels apart, as the kernel takes them.
    places = lambda x: x.unflatten(1, (groups, -1)).permute(0, 3, 4, 2, 1).flatten(3)
    return _Node(
        [places(left), places(right)],
        lambda: onnx_plan.correlation_volume(levels, groups),
        [left.shape[0], levels, *left.shape[2:], groups],
        _back,
    )


def _point_network(
    rows: Tensor, xyz: Tensor, neighbours: list[Tensor], upsample: list[Tensor], numbers: Tensor, flags: Tensor,
    layout: list[int], reals: list[float],
) -> _Node:  # fmt: skip
    from sparsemask.backends.native import onnx_plan

    return _Node(
        [rows, xyz, *neighbours, *upsample],
        lambda: onnx_plan.point_network(packed_point_network.unpack(Packed(numbers, flags, layout, reals))),
        [rows.shape[0], layout[0]],
        lambda logits: logits,
    )


_NODES: Mapping[str, Callable[..., _Node]] = {
    "inverted_residual": _inverted_residual,
    "locate": _predict_mask,
    "fuse_scales": _multiscale_sum,
    "conv": _conv,
    "kept_conv": _kept_conv,
    "merge_kept": _merge_kept,
    "joined_conv": _joined_conv,
    "block": _block,
    "attended_block": _attended_block,
    "correlation_volume": _correlation_volume,
    "packed_point_network": _point_network,
}


def _name_of(function: object) -> str | None:
    """The name of an operator of this toolkit."""
    if isinstance(function, OpOverload):
        function = function.overloadpacket
    if not isinstance(function, OpOverloadPacket):
        return None
    space, _, name = function._qualified_op_name.partition("::")
    return name if space == DOMAIN else None


class _Recording(TorchFunctionMode):
    """Keeps the plans of all calls of sparse operators, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.plans: list[Plan] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = _name_of(function)
        if name is not None:
            with torch._C.DisableTorchFunction():
                self.plans.extend(node.plan() for node in _node(name, args, kwargs).parts())
        return function(*args, **(kwargs or {}))


class _Tracing(TorchFunctionMode):
    """Puts a node in the place of every call of a sparse operator."""

    def __init__(self, plans: Sequence[Plan]) -> None:
        super().__init__()
        self.plans, self.count = plans, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = _name_of(function)
        if name is None:
            return function(*args, **(kwargs or {}))
        return self._traced(_node(name, args, kwargs))

    def _traced(self, node: _Node) -> Any:
        data = [self._traced(one) if isinstance(one, _Node) else one for one in node.data]
        number = self.count
        self.count += 1
        made = torch.onnx.ops.symbolic(
            f"{DOMAIN}::{self.plans[number].kind}", data,
            {_NUMBER: number, _DATA: len(data), _PLAN: 0}, dtype=node.kind, shape=node.shape, version=VERSION,
        )  # fmt: skip
        return node.back(made)


def _node(name: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None) -> _Node:
    if name not in _NODES:
        raise UseError(f"the operator {name} has no node in ONNX; the form whose masks multiply can be written")
    return _NODES[name](*args, **(kwargs or {}))


class WithNodes(nn.Module):
    """A network whose sparse operators are nodes.

    Args:
        network: of sparse operators, in evaluation mode.
        example: inputs on which it is called now.

    Attributes:
        plans: of its nodes.

    Raises:
        UseError: an operator has no node, or the kernels are not to be had.
    """

    def __init__(self, network: nn.Module, example: Sequence[Tensor]):
        super().__init__()
        self.network = network
        recording = _Recording()
        with torch.no_grad(), dispatch.as_program(nodes=True), recording:
            network(*example)
        self.plans = recording.plans

    def forward(self, *inputs: Tensor) -> Tensor:
        """The network's outputs, for a tracer alone."""
        with dispatch.as_program(nodes=True), _Tracing(self.plans):
            return self.network(*inputs)


def complete(model: onnx.ModelProto, plans: Sequence[Plan]) -> None:
    """Give the nodes of a model that was traced their plans and tensors."""
    from onnx import helper, numpy_helper

    from sparsemask.backends.native.onnx_plan import VERSION as PLAN_VERSION

    graph = model.graph
    _share(graph, plans)
    if any(node.domain == DOMAIN and node.op_type == "KeptConv" for node in graph.node):
        plans = [*plans, *_convolve_in_rows(graph, len(plans))]
    for node in graph.node:
        if node.domain != DOMAIN:
            continue
        attributes = {one.name: one.i for one in node.attribute}
        number = attributes.pop(_NUMBER)
        plan = plans[number]
        for name, array in [("plan", plan.words), *((f"tensor{k}", one) for k, one in enumerate(plan.tensors))]:
            called = f"{DOMAIN}.{number}.{name}"
            graph.initializer.append(numpy_helper.from_array(array, called))
            node.input.append(called)
        attributes[_PLAN] = PLAN_VERSION
        del node.attribute[:]
        node.attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        node.name = node.name or f"{node.op_type}_{number}"
    read = {name for node in graph.node for name in node.input} | {one.name for one in graph.output}
    kept = [one for one in graph.initializer if one.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    if not any(one.domain == DOMAIN for one in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))


def _share(graph: onnx.GraphProto, plans: Sequence[Plan]) -> None:
    """Leave one of nodes that compute the same: a region's convolutions have their tables in common."""
    known: dict[Hashable, str] = {}
    replaced: dict[str, str] = {}
    left = []
    for node in graph.node:
        for k, name in enumerate(node.input):
            node.input[k] = replaced.get(name, name)
        if node.domain == DOMAIN:
            plan = plans[_attribute(node, _NUMBER)]
            if not plan.tensors:
                first = known.setdefault((plan.kind, *node.input, plan.words.tobytes()), node.output[0])
                if first != node.output[0]:
                    replaced[node.output[0]] = first
                    continue
        left.append(node)
    del graph.node[:]
    graph.node.extend(left)


_TO_ROWS, _FROM_ROWS = [0, 2, 3, 1], [0, 3, 1, 2]  # permutations of dimensions


def _convolve_in_rows(graph: onnx.GraphProto, number: int) -> list[Plan]:
    """Make nodes of dense convolutions beside nodes, of few channels and of many, with the activation behind them.

    ONNX Runtime's own convolutions take channels in blocks of 16, so that features change their order twice on the way
    to a node, and its PReLU takes as long as a convolution of few channels. Those of many the kernels compute by
    squares; where their channels become pixels behind them these are moved in rows, a pixel's channels at a time, and
    the next convolution reads rows. For networks that have regions at kept locations.

    Args:
        graph: its nodes are replaced.
        number: of the first node that is made.

    Returns:
        The plans of the nodes.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    from sparsemask.backends.native import BACKEND, library, onnx_plan

    constants, outputs = {one.name: one for one in graph.initializer}, {one.name for one in graph.output}
    tensor = lambda name: torch.from_numpy(np.array(numpy_helper.to_array(constants[name])))
    maker = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    transposes = lambda node, order: (node and node.op_type) == "Transpose" and _attribute(node, "perm") == order
    plans: list[Plan] = []
    made: dict[str, list[onnx.NodeProto]] = {}  # by the name of a convolution's output
    gone: set[str] = set()
    shuffled: set[str] = set()  # made of rows, of pixels that were channels
    for node in graph.node:
        if node.op_type != "Conv" or not constants.keys() >= set(node.input[1:]) or node.output[0] in outputs:
            continue
        weight, (y,) = tensor(node.input[1]), node.output
        outs, ins = weight.shape[:2]
        pays = min(outs, ins) < library.LEAST or BACKEND.beats_dense(weight)
        if not pays or not _keeps_size(node, weight.shape):
            continue
        bias = tensor(node.input[2]) if len(node.input) > 2 else None
        activation, slopes, end, shuffle = "none", None, y, None
        if len(readers.get(y, ())) == 1:
            [behind] = readers[y]
            factors = behind.input[1] if behind.op_type == "PRelu" else ""
            if factors in constants and tensor(factors).numel() in (1, outs):
                slopes = tensor(factors).flatten().expand(outs).contiguous()
                activation, end = "leaky_relu", behind.output[0]
            elif behind.op_type == "Relu":
                activation, end = "relu", behind.output[0]
            elif behind.op_type == "DepthToSpace" and min(outs, ins) >= library.LEAST:
                assert _attribute(behind, "mode") == b"CRD"  # torch's order
                shuffle, end = behind, behind.output[0]
        beside = transposes(maker.get(node.input[0]), _FROM_ROWS) or node.input[0] in shuffled or shuffle is not None
        if not beside and not any(transposes(one, _TO_ROWS) for one in readers.get(end, ())):
            continue
        told = {_NUMBER: number, _DATA: 1, _PLAN: 0}
        rows, out = f"{DOMAIN}.{number}.rows", f"{DOMAIN}.{number}.out"
        made[y] = [helper.make_node("Transpose", [node.input[0]], [rows], perm=_TO_ROWS)]
        made[y].append(helper.make_node("JoinedConv", [rows], [out], domain=DOMAIN, **told))
        if shuffle is not None:
            by = _attribute(shuffle, "blocksize")
            weight, bias = _by_pixels(weight, by), None if bias is None else _by_pixels(bias, by)
            moving, out = _pixels_of_rows(graph, out, by, outs // by**2)
            made[y] += moving
            shuffled.add(end)
        plans.append(onnx_plan.joined_conv(weight, bias, [ins], activation, slopes))
        made[y].append(helper.make_node("Transpose", [out], [end], perm=_FROM_ROWS))
        gone |= {y, end}
        number += 1
    nodes = []
    for node in graph.node:
        nodes += made.get(node.output[0], [] if node.output[0] in gone else [node])
    del graph.node[:]
    graph.node.extend(nodes)
    return plans


def _by_pixels(x: Tensor, by: int) -> Tensor:
    """Weights whose outputs (C * by * by) become pixels, in the order (by, by, C): a pixel's next to each other."""
    return x.unflatten(0, (-1, by, by)).movedim(0, 2).flatten(0, 2).contiguous()


def _pixels_of_rows(graph: onnx.GraphProto, rows: str, by: int, channels: int) -> tuple[list[onnx.NodeProto], str]:
    """Nodes that make (N, H * by, W * by, C) of rows (N, H, W, by * by * C), of any size, and what they make."""
    import numpy as np
    from onnx import helper, numpy_helper

    def constant(name: str, *values: int) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), f"{rows}.{name}"))
        return f"{rows}.{name}"

    at = lambda name: f"{rows}.{name}"
    parts, factors, left = (
        constant("parts", 0, 0, 0, by, by, channels), constant("factors", 1, by, by), constant("channels", channels),
    )  # fmt: skip
    nodes = [
        helper.make_node("Reshape", [rows, parts], [at("apart")]),
        helper.make_node("Transpose", [at("apart")], [at("moved")], perm=[0, 1, 3, 2, 4, 5]),
        helper.make_node("Shape", [rows], [at("size")], start=0, end=3),
        helper.make_node("Mul", [at("size"), factors], [at("larger")]),
        helper.make_node("Concat", [at("larger"), left], [at("whole")], axis=0),
        helper.make_node("Reshape", [at("moved"), at("whole")], [at("pixels")]),
    ]
    return nodes, at("pixels")


def _attribute(node: onnx.NodeProto, name: str) -> Any:
    """What an attribute of a node is; None where it has none."""
    from onnx import helper

    return next((helper.get_attribute_value(one) for one in node.attribute if one.name == name), None)


def _keeps_size(node: onnx.NodeProto, shape: Sequence[int]) -> bool:
    """Whether a convolution with weights of a shape is an ordinary one: odd kernels in a plane that keep the size."""
    kernel = list(shape[2:])
    given = [_attribute(node, name) for name in ("group", "strides", "dilations", "pads", "auto_pad")]
    wanted = [1, [1, 1], [1, 1], [k // 2 for k in kernel] * 2, b"NOTSET"]
    usual = [1, [1, 1], [1, 1], [0] * 4, b"NOTSET"]
    found = [default if one is None else one for one, default in zip(given, usual, strict=True)]
    return len(kernel) == 2 and all(k % 2 for k in kernel) and found == wanted
