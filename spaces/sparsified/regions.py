"""Regions of a network that a mask over locations can skip, found in its graph.

A region has one input and one output of the same shape, and between them only convolutions that keep the size and
operators that treat every location by itself. Where a mask drops a location, a 1×1 convolution of the region's input
stands for its output.

The graph is that of ``torch.fx``, which has every operator in order; the channel graph that `shrink` works on
(:mod:`sparsemask.spaces.group_sparsity.tracing`) has the layers alone.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from sparsemask.errors import UseError, one_line
from sparsemask.spaces.sparse_conv.locator import width_of

_MODULES = (
    nn.ReLU, nn.ReLU6, nn.PReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Mish, nn.GELU, nn.Sigmoid, nn.Tanh, nn.Hardswish,
    nn.Hardsigmoid, nn.Softplus, nn.Identity, nn.Dropout, nn.Dropout2d,
)  # fmt: skip
_FUNCTIONS = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.neg, operator.getitem, torch.add, torch.sub,
    torch.mul, torch.relu, torch.sigmoid, torch.tanh, torch.cat, F.relu, F.relu6, F.leaky_relu, F.elu, F.silu, F.mish,
    F.gelu, F.sigmoid, F.tanh, F.hardswish, F.hardsigmoid, F.softplus,
}  # fmt: skip
_PRODUCTS, _SUMS = {operator.mul, torch.mul}, {operator.add, operator.sub, torch.add, torch.sub}
_ZERO_MODULES = (
    nn.ReLU, nn.ReLU6, nn.PReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Mish, nn.GELU, nn.Tanh, nn.Hardswish, nn.Identity,
    nn.Dropout, nn.Dropout2d,
)  # fmt: skip
_ZERO_FUNCTIONS = {  # of zeros give zeros
    operator.neg, operator.getitem, torch.relu, torch.tanh, torch.cat, F.relu, F.relu6, F.leaky_relu, F.elu, F.silu,
    F.mish, F.gelu, F.tanh, F.hardswish,
}  # fmt: skip
_METHODS = {"add", "sub", "mul", "div", "neg", "relu", "sigmoid", "tanh", "contiguous"}
FULL, POOLED = "full", "pooled"
BRANCHES = (FULL, POOLED)
"""Kinds of mask branches: whose first convolution is 3×3 at the features' size, as in networks of versions before; or
1×1, behind pooling by two."""
LONGEST = 4  # convolutions of a region that is no residual block
_MOST = 8  # of a residual block
_BYPASS = 0.1  # share of a region's multiply-adds that a bypass which mixes channels may cost
_BRANCH = 0.25  # share of a region's multiply-adds that a mask branch of the dearer kind may cost
Shape = tuple[int, ...]


@runtime_checkable
class HasCore(Protocol):
    """A network whose graph is that of one of its methods, what stands around it being plain Python on sizes."""

    def compute(self, x: Tensor) -> Tensor:
        """The network's arithmetic, which can be traced."""

    def enlarge(self, images: Tensor, compute: object) -> Tensor:
        """The network's output, with `compute` in place of its own."""


@dataclass(frozen=True)
class Region:
    """A part of a graph under one mask; nodes by name.

    Attributes:
        entry: the node that it reads.
        exit: its last node, of the shape of `entry`.
        inside: all of its nodes, `exit` included.
        convs: those that are convolutions, in order.
        fused: convolutions whose only reader is a ReLU or leaky ReLU: (its node, as the sparse operator names it).
        prelus: convolutions whose only reader is a PReLU: its node.
        channels: of `entry`.
        multiply_adds: of each convolution, for the example.
        branch: of the mask branch, for the example.
        bypass: of the bypass, for the example.
        bypass_groups: 1 for a bypass that mixes channels, `channels` for a factor and an offset of each, which is what
            cheap regions get.
        in_rows: whether it can be computed at kept locations alone: its convolutions read nothing else, where they are
            dropped, than zeros and the region's input.
    """

    entry: str
    exit: str
    inside: frozenset[str]
    convs: tuple[str, ...]
    fused: dict[str, tuple[str, str]]
    prelus: dict[str, str]
    channels: int
    multiply_adds: tuple[int, ...]
    branch: int
    bypass: int
    bypass_groups: int
    in_rows: bool


def traced(network: nn.Module, example: Tensor) -> fx.Graph:
    """The graph of a network with the shapes of its tensors for an example, in ``node.meta["tensor_meta"]``.

    Raises:
        UseError: a network whose control flow depends on values, so that it has no one graph.
    """
    tracer = fx.Tracer()
    inputs = example
    if isinstance(network, HasCore):
        tracer.traced_func_name = "compute"
    try:
        graph = tracer.trace(network)
        _keep_constants(network, graph)
        # Parameters are shared with the network; only shapes are noted.
        ShapeProp(fx.GraphModule(network, graph)).propagate(inputs)
    except UseError:
        raise
    except Exception as error:  # whatever a user's forward raises when it is given a proxy
        raise UseError(
            f"{type(network).__name__} cannot be traced by torch.fx, so that its chains of convolutions are not known: "
            f"{one_line(error)[:200]}"
        ) from None
    return graph


def _keep_constants(network: nn.Module, graph: fx.Graph) -> None:
    """Make tensors that the trace found computed buffers of the network, so that they go to its device with it."""
    for node in graph.nodes:
        if node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            owner = network.get_submodule(path)
            value = vars(owner).get(name)
            if isinstance(value, Tensor):
                delattr(owner, name)
                owner.register_buffer(name, value, persistent=False)


def find_regions(network: nn.Module, graph: fx.Graph, branch: str = POOLED) -> list[Region]:
    """The regions of a traced network in order, without overlap; those alone whose convolutions outweigh a mask.

    Args:
        network: its modules are asked for kernels.
        graph: with shapes, see :func:`traced`.
        branch: of the masks, of :data:`BRANCHES`.

    Returns:
        Residual blocks where there are any, else chains of up to four convolutions.
    """
    search = _Search(network, graph, branch)
    regions: list[Region] = []
    taken: set[str] = set()
    for entry in search.nodes:
        if entry.name in taken or search.shape(entry) is None or search.goes_on(entry):
            continue
        region = search.from_entry(entry)
        if region is not None and not region.inside & taken:
            regions.append(region)
            taken |= region.inside - {region.exit}
    return regions


def branch_cost(branch: str, channels: int, locations: int) -> int:
    """Multiply-adds of a mask branch of a kind on features of so many channels."""
    if branch == POOLED:
        width = width_of(channels)
        return locations * (channels * width + 9 * width * width + 18 * width) // 4
    width = max(1, channels // 4)
    return int(locations * 9 * (channels * width + (width * width + 2 * width) / 4))


class _Search:
    """Looks for regions in one graph."""

    def __init__(self, network: nn.Module, graph: fx.Graph, branch: str):
        self.modules, self.nodes, self.kind = dict(network.named_modules()), list(graph.nodes), branch
        self.index = {node: number for number, node in enumerate(self.nodes)}

    def shape(self, node: fx.Node) -> Shape | None:
        """The shape of an image-like value, None for any other."""
        meta = node.meta.get("tensor_meta")
        shape = tuple(meta.shape) if isinstance(meta, fx.passes.shape_prop.TensorMetadata) else ()
        return shape if len(shape) == 4 else None

    def conv(self, node: fx.Node) -> nn.Conv2d | None:
        """The convolution that a node calls, if it keeps the size."""
        layer = self.modules.get(str(node.target)) if node.op == "call_module" else None
        if type(layer) is not nn.Conv2d or layer.padding_mode != "zeros" or isinstance(layer.padding, str):
            return None
        before, after = self.shape(node.all_input_nodes[0]), self.shape(node)
        same = before is not None and after is not None and before[2:] == after[2:] and set(layer.stride) == {1}
        return layer if same else None

    def by_location(self, node: fx.Node, entry: fx.Node) -> bool:
        """Whether a node treats every location of values of the entry's size by itself."""
        if node.op == "call_module":
            layer = self.modules.get(str(node.target))
            known = isinstance(layer, _MODULES)
            changes = bool(vars(layer).get("inplace")) if known else False
        elif node.op == "call_function":
            known, changes = node.target in _FUNCTIONS, bool(node.kwargs.get("inplace"))
            if node.target is torch.cat:
                known = (node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) in (1, -3)
        else:
            known, changes = node.op == "call_method" and node.target in _METHODS, False
        if not known or (changes and entry in node.all_input_nodes):
            return False
        shape, whole = self.shape(node), self.shape(entry)
        assert whole is not None
        others = [value for value in node.all_input_nodes if value.op == "get_attr"]
        scalars = all(self.shape(value) is None or self.shape(value)[2:] == (1, 1) for value in others)  # type: ignore[index]
        return shape is not None and (shape[0], *shape[2:]) == (whole[0], *whole[2:]) and scalars

    def goes_on(self, node: fx.Node) -> bool:
        """Whether a node's only reader is an activation, behind which a region begins rather than before it."""
        users = list(node.users)
        return len(users) == 1 and len(users[0].all_input_nodes) == 1 and self.by_location(users[0], node)

    def from_entry(self, entry: fx.Node) -> Region | None:
        """The region that begins at a node: the smallest residual block, else the longest short chain."""
        reachable: list[fx.Node] = []
        known = {entry}
        for node in self.nodes[self.index[entry] + 1 :]:
            inputs = [value for value in node.all_input_nodes if value.op != "get_attr"]
            if inputs and known.issuperset(inputs) and (self.conv(node) or self.by_location(node, entry)):
                known.add(node)
                reachable.append(node)
        residual, chains = [], []
        for exit in reachable:
            if self.shape(exit) != self.shape(entry):
                continue
            alike = (self.conv(exit) is None) == (self.conv(entry) is None)
            inside = self.behind(exit, entry)
            convs = [node for node in inside if self.conv(node)]
            if not convs or len(convs) > _MOST or self.leaks(inside, exit):
                continue
            last = self.index[convs[-1]]
            closed = any(user in inside and self.index[user] > last for user in entry.users)
            candidate = len(convs), inside, convs, exit
            if closed:
                residual.append(candidate)
            elif 2 <= len(convs) <= LONGEST and alike:  # what is passed on is of the kind that is read
                chains.append(candidate)
        if residual:
            least = min(count for count, *_ in residual)
            found = [candidate for candidate in residual if candidate[0] == least][-1]
        elif chains:
            most = max(count for count, *_ in chains)
            found = [candidate for candidate in chains if candidate[0] == most][-1]
        else:
            return None
        return self.paying(entry, *found[1:])

    def behind(self, exit: fx.Node, entry: fx.Node) -> list[fx.Node]:
        """What is computed between the two, in order."""
        needed, stack = {exit}, [exit]
        while stack:
            for value in stack.pop().all_input_nodes:
                if value is not entry and value.op != "get_attr" and value not in needed:
                    needed.add(value)
                    stack.append(value)
        return sorted(needed, key=self.index.__getitem__)

    def leaks(self, inside: Sequence[fx.Node], exit: fx.Node) -> bool:
        """Whether anything but the exit is read outside."""
        own = set(inside)
        return any(not own.issuperset(node.users) for node in inside if node is not exit)

    def paying(
        self, entry: fx.Node, inside: Sequence[fx.Node], convs: Sequence[fx.Node], exit: fx.Node
    ) -> Region | None:
        """The region, if what it computes is worth a mask branch."""
        shape = self.shape(entry)
        assert shape is not None
        locations, channels = shape[0] * shape[2] * shape[3], shape[1]
        layers = [self.conv(node) for node in convs]
        counts = tuple(locations * layer.weight.numel() for layer in layers if layer is not None)
        if branch_cost(FULL, channels, locations) > _BRANCH * sum(counts):
            return None
        fused = {node.name: found for node in convs if (found := self.activation(node, inside)) is not None}
        readers = {node.name: self.only_reader(node, inside) for node in convs}
        prelus = {
            name: reader.name
            for name, reader in readers.items()
            if reader is not None and isinstance(self.modules.get(str(reader.target)), nn.PReLU)
        }
        names = frozenset(node.name for node in inside)
        mixes = channels * channels * locations <= _BYPASS * sum(counts)
        return Region(
            entry=entry.name,
            exit=exit.name,
            inside=names,
            convs=tuple(node.name for node in convs),
            fused=fused,
            prelus=prelus,
            channels=channels,
            multiply_adds=counts,
            branch=branch_cost(self.kind, channels, locations),
            bypass=locations * channels * (channels if mixes else 1),
            bypass_groups=1 if mixes else channels,
            in_rows=self.in_rows(entry, inside),
        )

    def in_rows(self, entry: fx.Node, inside: Sequence[fx.Node]) -> bool:
        """Whether convolutions of a region read zeros where their input is dropped, or the region's input."""
        zero: set[fx.Node] = set()  # where they are dropped
        for node in inside:
            layer, inputs = self.conv(node), [value for value in node.all_input_nodes if value.op != "get_attr"]
            if layer is not None:
                if layer.groups not in (1, layer.in_channels) or not (inputs[0] is entry or inputs[0] in zero):
                    return False
                zero.add(node)
            elif self.keeps_zero(node, zero):
                zero.add(node)
        return True

    def keeps_zero(self, node: fx.Node, zero: Collection[fx.Node]) -> bool:
        """Whether a node that treats locations by themselves gives zero where some of its inputs are."""
        called = self.modules.get(str(node.target)) if node.op == "call_module" else node.target
        name = str(called) if node.op == "call_method" else ""
        if called in _PRODUCTS or name == "mul":
            return any(value in zero for value in node.all_input_nodes)
        if called in _SUMS or name in {"add", "sub"}:
            return len(node.args) == 2 and not node.kwargs and all(value in zero for value in node.args)
        if called is operator.truediv or name == "div":
            return node.args[0] in zero
        known = (
            isinstance(called, _ZERO_MODULES)
            or called in _ZERO_FUNCTIONS
            or name in {"neg", "relu", "tanh", "contiguous"}
        )
        return known and all(value in zero for value in node.all_input_nodes)

    def only_reader(self, node: fx.Node, inside: Sequence[fx.Node]) -> fx.Node | None:
        """What alone reads a node, if it lies inside of the region."""
        users = list(node.users)
        return users[0] if len(users) == 1 and users[0] in inside else None

    def activation(self, node: fx.Node, inside: Sequence[fx.Node]) -> tuple[str, str] | None:
        """The ReLU or leaky ReLU that is a convolution's only reader, as the sparse operator names it."""
        user = self.only_reader(node, inside)
        if user is None:
            return None
        slope: object = None
        layer = self.modules.get(str(user.target)) if user.op == "call_module" else None
        if isinstance(layer, nn.ReLU) or user.target in (F.relu, torch.relu):
            return user.name, "relu"
        if isinstance(layer, nn.LeakyReLU):
            slope = layer.negative_slope
        elif user.target is F.leaky_relu:
            slope = user.args[1] if len(user.args) > 1 else user.kwargs.get("negative_slope", 0.01)
        return (user.name, f"leaky_relu:{slope:g}") if isinstance(slope, float) and slope > 0 else None
