"""Constants of removed channels, and the biases and running means that can absorb them.

A channel whose groups are zero still holds the constant that biases and batch norms make of zero, through activations,
sums and pools. It does not depend on the input and is measured by running the network on two random inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from sparsemask.spaces.group_sparsity.compression.border import can_be_bordered
from sparsemask.spaces.group_sparsity.inputs import Inputs
from sparsemask.spaces.group_sparsity.tracing.graph import ChannelGraph
from sparsemask.spaces.group_sparsity.tracing.record import Node, Value, tensors_in
from sparsemask.spaces.group_sparsity.tracing.trial import Replay, SamePath
from sparsemask.timing import evaluating

# Below this, relative to a channel's largest value, two values are the same (bilinear resizing rounds).
_SAME = 2e-6
# Operators through which a constant added to a channel passes unchanged.
_PASS = """clone detach alias _to_copy expand mean _adaptive_avg_pool2d adaptive_avg_pool2d upsample_bilinear2d
    upsample_nearest2d upsample_bicubic2d upsample_linear1d upsample_nearest1d upsample_trilinear3d upsample_nearest3d
    max_pool2d_with_indices max_pool1d_with_indices dropout native_dropout""".split()


@dataclass
class Corrections:
    """Corrections to biases, running means and borders, over the channels before the removal."""

    biases: dict[str, Tensor] = field(default_factory=dict)
    """By module: added to its bias, (out channels,)."""
    means: dict[str, Tensor] = field(default_factory=dict)
    """By buffer: subtracted from a batch norm's running mean, (channels,)."""
    borders: dict[str, Tensor] = field(default_factory=dict)
    """By module: weights of a channel of ones."""
    refused: list[np.ndarray] = field(default_factory=list)
    """Elements whose constants cannot be absorbed; they cannot be removed."""


@dataclass(frozen=True)
class Consumer:
    """A product that reads removed channels."""

    node: Node
    values: Tensor
    """Of the removed channels, (B, R, ...) or (rows, R), float64."""
    others: Tensor
    """The same for another input."""
    weights: Tensor
    """Those of the removed channels, as the operator is given them."""


@dataclass(frozen=True)
class Readings:
    """What removed channels hold where they are read."""

    consumers: list[Consumer]
    nonzero: list[np.ndarray]
    """Elements of sums over channels to which they contribute something."""
    inputs: Inputs
    """The second ones."""
    output: object
    """The network's output for it."""


class _Otherwise(RuntimeError):
    """Other operators ran than in the trace."""


class _Reader(Replay):
    """Runs the traced network again and records the values of removed channels at the layers that consume them."""

    def __init__(self, graph: ChannelGraph, gone: np.ndarray):
        super().__init__(graph)
        self.gone = gone
        self.values: dict[int, tuple[Tensor, Tensor]] = {}
        self.nonzero: list[np.ndarray] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        node = self.traced(func)
        if node is None:
            raise _Otherwise(f"the network ran otherwise than when it was traced (step {self.step}: {func})")
        if node.mixes and self.gone[node.consumes].any():
            at = torch.from_numpy(np.flatnonzero(self.gone[node.consumes]))
            x, weight = args[:2] if node.op == "convolution" else args[-2:]
            at = at.to(x.device)
            weight = _dense(weight, node.groups) if node.inside else weight
            self.values[self.step] = x.index_select(1, at).double(), weight.index_select(node.input_dim, at).double()
        if node.sums:
            self._check_sums(node, tensors_in((args, kwargs)))
        self.step += 1
        return func(*args, **(kwargs or {}))

    def _check_sums(self, node: Node, operands: list[Tensor]) -> None:
        """Note the removed elements that are zero in none of a sum's terms."""
        for each in node.sums:
            at = torch.from_numpy(np.flatnonzero(self.gone[each.elements]))
            if not len(at):
                continue
            zero = torch.zeros(len(at), dtype=torch.bool)
            for position, dim in each.places:
                terms = operands[position].index_select(dim, at.to(operands[position].device))
                zero |= (terms == 0).movedim(dim, 0).flatten(1).all(1).cpu()
            if not zero.all():
                self.nonzero.append(each.elements[at[~zero].numpy()])


def _dense(weight: Tensor, groups: int) -> Tensor:
    """The weight without groups of a grouped convolution: zero between groups."""
    rows, columns = weight.shape[0] // groups, weight.shape[1]
    dense = weight.new_zeros(groups, rows, groups, columns, *weight.shape[2:])
    for group, part in enumerate(weight.split(rows)):
        dense[group, :, group] = part
    return dense.view(groups * rows, groups * columns, *weight.shape[2:])


def _run(network: nn.Module, graph: ChannelGraph, gone: np.ndarray, inputs: Inputs) -> tuple:
    reader = _Reader(graph, gone)
    with evaluating(network), reader, SamePath():  # as in a trace, which may empty what modules keep between runs
        output = inputs.run(network)
    return reader, output


def read(network: nn.Module, graph: ChannelGraph, gone: np.ndarray) -> Readings:
    """Measure the values of removed channels on two random inputs.

    Args:
        network: the masked network, in evaluation mode.
        graph: its channels.
        gone: bool (graph.count,), the removed elements.
    """
    like = next(network.parameters())
    generator = torch.Generator().manual_seed(0)
    runs = []
    for _ in range(2):
        inputs = graph.inputs.draw(like, generator)
        with torch.no_grad():
            try:
                reader, output = _run(network, graph, gone, inputs)
            except _Otherwise:  # what is computed once and kept, as biases of attention are, was not kept yet
                inputs.run(network)
                reader, output = _run(network, graph, gone, inputs)
        runs.append(reader)
    first, second = runs
    consumers = [Consumer(graph.all_nodes[k], x, second.values[k][0], w) for k, (x, w) in first.values.items()]
    return Readings(consumers, first.nonzero + second.nonzero, inputs, output)


def corrections(
    network: nn.Module, graph: ChannelGraph, gone: np.ndarray, readings: Readings, fold: str
) -> Corrections:
    """Decide where the constants of removed channels are absorbed.

    Args:
        network: the masked network, in evaluation mode.
        graph: its channels.
        gone: bool (graph.count,), the removed elements.
        readings: as :func:`read` returns them.
        fold: "exact" or "interior", see :func:`sparsemask.spaces.group_sparsity.compression.compress.compress`.
    """
    result = Corrections(refused=list(readings.nonzero))
    repeated: dict[str, list[tuple[Consumer, Tensor]]] = {}
    for consumer in readings.consumers:
        node = consumer.node
        elements = node.consumes[gone[node.consumes]]
        read = consumer.weights.abs().amax([d for d in range(consumer.weights.dim()) if d != node.input_dim]) > 0
        moves = _moves(consumer, fold) & read
        if moves.any():
            result.refused.append(elements[moves.cpu().numpy()])
            continue
        x = consumer.values
        value = torch.where(read, x[(0, slice(None), *(size // 2 for size in x.shape[2:]))], 0)
        total = torch.tensordot(value, consumer.weights, ([0], [node.input_dim]))  # (out channels, k, ...)
        if node.weight.parameter in graph.shared:
            repeated.setdefault(node.weight.parameter, []).append((consumer, total))
        elif value.any() and not _absorbed(network, graph, node, total, fold, result):
            result.refused.append(elements)
    for uses in repeated.values():  # a layer that runs several times has one bias for all of them
        node, total = uses[0][0].node, uses[0][1]
        alike = all(
            torch.allclose(total, other, rtol=_SAME, atol=_SAME * float(total.abs().max())) for _, other in uses
        )
        if not alike or (total.any() and not _absorbed(network, graph, node, total, fold, result)):
            result.refused.append(node.consumes[gone[node.consumes]])
    return result


def _moves(consumer: Consumer, fold: str) -> Tensor:
    """Which removed channels are no constants: they depend on the input, or on the position where that matters."""
    x, other, convolves = consumer.values, consumer.others, consumer.node.op == "convolution"
    scale = x.abs().amax((0, *range(2, x.dim()))) + 1e-3
    moves = (x - other).abs().amax((0, *range(2, x.dim()))) > _SAME * scale
    if not convolves or fold == "exact":  # rows of a matrix product are positions, too
        positions = x.flatten(2) if convolves else x[..., None]
        moves |= (positions.amax((0, 2)) - positions.amin((0, 2))) > _SAME * scale
    return moves


def _absorbed(
    network: nn.Module, graph: ChannelGraph, node: Node, total: Tensor, fold: str, result: Corrections
) -> bool:
    """Whether the contribution of constants to a product, (out channels, k, ...), finds a place; noted there."""
    convolves = node.op == "convolution"
    if convolves and fold == "exact" and (node.transposed or any(node.args[4])):
        module = graph.module_of(node)
        if not node.weight.parameter or not can_be_bordered(network.get_submodule(module)):
            return False
        result.borders[module] = total.unsqueeze(node.input_dim)
        return True
    inside = total.flatten(1).sum(1) if convolves else total
    # Strides of a transposed convolution spread the kernel over that many outputs.
    targets = _Targets(network, graph)
    if not targets.product(node, inside / np.prod(node.args[3]) if node.transposed else inside):
        return False
    targets.add_to(result)
    return True


class _Targets:
    """Searches for layers that can absorb a constant: existing biases, later running means, finally a new bias."""

    def __init__(self, network: nn.Module, graph: ChannelGraph):
        self.network, self.graph = network, graph
        self.biases: list[tuple[str, Tensor]] = []
        self.means: list[tuple[str, Tensor]] = []

    def add_to(self, result: Corrections) -> None:
        """Add what was found to the corrections."""
        for totals, new in ((result.biases, self.biases), (result.means, self.means)):
            for name, part in new:
                totals[name] = totals.get(name, 0) + part

    def product(self, node: Node, amount: Tensor) -> bool:
        """Whether a constant (out channels,) at a product's output can be absorbed."""
        module = self.graph.module_of(node) if node.weight.parameter else None
        if module and node.bias is not None and node.bias.parameter == f"{module}.bias":
            self.biases.append((module, amount))
            return True
        before = len(self.biases), len(self.means)
        shared = node.weight.parameter in self.graph.shared
        if not shared and self.value(node.outputs[0], amount):
            return True
        del self.biases[before[0] :], self.means[before[1] :]
        if module and _lacks_bias(self.network.get_submodule(module)):
            self.biases.append((module, amount))
            return True
        return False

    def value(self, value: Value, amount: Tensor) -> bool:
        """Whether a constant (channels,) in a tensor can be absorbed by every operator that reads it."""
        uses = self.graph.readers.get(value.number, ())
        return bool(uses) and all(self._use(node, value, amount) for node in uses)

    def _use(self, node: Node, value: Value, amount: Tensor) -> bool:
        """Whether one operator that reads the tensor can absorb the constant, or what it makes of it is absorbed."""
        positions = [i for i, v in enumerate(node.inputs) if v.number == value.number]
        out = node.outputs[0]
        wide = len(out.shape) > 1 and out.shape[1] == len(amount)
        if node.is_batch_norm:
            fits = bool(node.running_mean) and positions == [0] and node.running_mean not in self.graph.shared
            if fits:
                self.means.append((node.running_mean, amount))
            return fits
        if node.op == "convolution":
            # A 1x1 convolution (a pair's second one) makes of a constant another one.
            plain = node.groups == 1 and not node.transposed and not any(node.args[4]) and positions == [0]
            name = node.weight.parameter
            if not plain or not name or name in self.graph.shared or max(node.weight.shape[2:]) > 1:
                return False
            weight = self.network.get_parameter(name).double().flatten(1)
            return self.product(node, weight @ amount)
        if node.op == "add":
            fits = wide and not node.named and len(value.shape) == len(out.shape)
            return fits and self.value(out, amount * len(positions))
        if node.op in ("split", "split_with_sizes", "unsafe_split"):
            if len(node.args) != 3 or node.args[2] != 1:
                return False
            parts = zip(node.outputs, amount.split([output.shape[1] for output in node.outputs]), strict=True)
            return all(self.value(output, part) for output, part in parts if output.number in self.graph.readers)
        if node.op == "cat":
            if node.args[1:] != (1,) or len(positions) > 1:
                return False
            at = sum(v.shape[1] for v in node.inputs[: positions[0]])
            padded = amount.new_zeros(out.shape[1])
            padded[at : at + len(amount)] = amount
            return self.value(out, padded)
        return node.op in _PASS and wide and 1 in out.axes and self.value(out, amount)


def _lacks_bias(module: nn.Module) -> bool:
    """Whether a module, perhaps a user's own, could have a bias and has none."""
    try:
        return module.bias is None
    except AttributeError:
        return False
