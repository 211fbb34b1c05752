"""What removed channels leave behind, and where it can be put.

A channel whose groups are zero still carries what biases and batch norms make of zero, through activations, sums and
pools. It does not depend on the input, so it is read off the network itself, run on two random inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spaces.group_sparsity.border import can_be_bordered
from spaces.group_sparsity.channels import ChannelGraph
from spaces.group_sparsity.tracing import Node, Value

# Below this, relative to a channel's largest value, two values are the same (bilinear resizing rounds).
_SAME = 2e-6
# Operators through which a constant added to a channel passes unchanged.
_PASS = """clone detach alias _to_copy expand mean _adaptive_avg_pool2d adaptive_avg_pool2d upsample_bilinear2d
    upsample_nearest2d upsample_bicubic2d upsample_linear1d upsample_nearest1d upsample_trilinear3d upsample_nearest3d
    max_pool2d_with_indices max_pool1d_with_indices dropout native_dropout""".split()


@dataclass
class Plan:
    """What has to be added where, over the channels before the removal."""

    biases: dict[str, Tensor] = field(default_factory=dict)
    """By module: to its bias (out channels,)."""
    means: dict[str, Tensor] = field(default_factory=dict)
    """By buffer: from a batch norm's running mean (channels,)."""
    borders: dict[str, Tensor] = field(default_factory=dict)
    """By module: weights of a channel of ones."""
    refused: list[np.ndarray] = field(default_factory=list)
    """Elements whose constants have no place: they cannot go."""


class _Reader(TorchDispatchMode):
    """Runs the traced network again and keeps what the removed channels hold where they are consumed."""

    def __init__(self, graph: ChannelGraph, gone: np.ndarray):
        super().__init__()
        self.graph, self.gone, self.step = graph, gone, 0
        self.found: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        node = self.graph.all_nodes[self.step] if self.step < len(self.graph.all_nodes) else None
        if node is None or node.op != name.removesuffix("_"):
            raise RuntimeError(f"the network ran otherwise than when it was traced (step {self.step}: {name})")
        if node.makes is not None and node.groups == 1 and self.gone[node.consumes].any():
            at = torch.from_numpy(np.flatnonzero(self.gone[node.consumes]))
            x, weight = args[:2] if node.op == "convolution" else args[-2:]
            dim = int(node.op == "convolution" and not args[6])
            at = at.to(x.device)
            self.found[self.step] = (x.index_select(1, at).double(), weight.index_select(dim, at).double())
        self.step += 1
        return func(*args, **(kwargs or {}))


def read(network: nn.Module, graph: ChannelGraph, gone: np.ndarray) -> tuple[list, Tensor, Tensor]:
    """[(node, values, values on another input, weights)] of the consumers of removed channels; an input, its output."""
    like = next(network.parameters())
    generator = torch.Generator().manual_seed(0)
    runs = []
    for _ in range(2):
        example = torch.randn(graph.shape, generator=generator).to(like)
        reader = _Reader(graph, gone)
        with torch.no_grad(), reader:
            output = network(example)
        runs.append(reader.found)
    return [(graph.all_nodes[k], x, runs[1][k][0], w) for k, (x, w) in runs[0].items()], example, output


def plan(network: nn.Module, graph: ChannelGraph, gone: np.ndarray, found: list, fold: str) -> Plan:
    """Where the constants of the removed channels go; `fold` as for :func:`spaces.group_sparsity.compress.compress`."""
    result = Plan()
    users = _users(graph)
    for node, x, other, weight in found:
        elements = node.consumes[gone[node.consumes]]
        convolves = node.op == "convolution"
        seen_by = (
            weight.abs().flatten(1).amax(1)
            if not convolves or node.args[6]
            else weight.abs().amax((0, *range(2, weight.dim())))
        )
        scale = x.abs().amax((0, *range(2, x.dim()))) + 1e-3
        moves = (x - other).abs().amax((0, *range(2, x.dim()))) > _SAME * scale
        if convolves:
            flat = x.flatten(2)
            moves |= (fold == "exact") & ((flat.amax((0, 2)) - flat.amin((0, 2))) > _SAME * scale)
        if (moves & (seen_by > 0)).any():
            result.refused.append(elements[(moves & (seen_by > 0)).cpu().numpy()])
            continue
        value = x[(0, slice(None), *(size // 2 for size in x.shape[2:]))]
        value = torch.where(seen_by > 0, value, 0)
        if not (value * seen_by).any():
            continue
        if not convolves:
            _put(network, graph, node, value @ weight, users, result, elements)
            continue
        padded, transposed = any(node.args[4]), node.args[6]
        ones = torch.tensordot(value, weight, ([0], [0 if transposed else 1]))  # (out channels, k, ...)
        module = graph.module_of(node)
        if fold == "exact" and (padded or transposed):
            if node.weight.parameter and can_be_bordered(network.get_submodule(module)):
                result.borders[module] = ones.unsqueeze(0 if transposed else 1)
            else:
                result.refused.append(elements)
            continue
        inside = ones.flatten(1).sum(1) / (np.prod(node.args[3]) if transposed else 1)
        _put(network, graph, node, inside, users, result, elements)
    return result


def _put(network, graph, node: Node, amount: Tensor, users: dict, result: Plan, elements: np.ndarray) -> None:
    """Add `amount` (out channels,) to a product's output: to its bias, else to the batch norms after it, or refuse."""
    module = graph.module_of(node) if node.weight.parameter else None
    if module and node.bias is not None and node.bias.parameter == f"{module}.bias":
        result.biases[module] = amount
        return
    means: list[tuple[str, Tensor]] = []
    if _follow(node.outputs[0], amount, users, means):
        for name, part in means:
            result.means[name] = result.means.get(name, 0) + part
    elif module and getattr(network.get_submodule(module), "bias", 0) is None:
        result.biases[module] = amount
    else:
        result.refused.append(elements)


def leaves(tree) -> list[Tensor]:
    """The tensors in a network's output."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _users(graph: ChannelGraph) -> dict[int, list[Node]]:
    users: dict[int, list[Node]] = {}
    for node in graph.all_nodes:
        for number in {value.number for value in node.inputs}:
            users.setdefault(number, []).append(node)
    return users


def _follow(value: Value, amount: Tensor, users: dict[int, list[Node]], means: list) -> bool:
    """Find the running means that can take a constant added to `value`; False where one use of it cannot."""
    for node in users.get(value.number, ()):
        times = sum(v.number == value.number for v in node.inputs)
        if node.op.endswith("batch_norm") or node.op.startswith("_batch_norm"):
            mean = next((v.parameter for v in node.inputs[1:] if v.parameter.endswith("running_mean")), "")
            if not mean or times > 1 or node.inputs[0].number != value.number:
                return False
            means.append((mean, amount))
        elif node.op == "add" and not node.named and 1 < len(value.shape) == len(node.outputs[0].shape):
            if node.outputs[0].shape[1] != len(amount) or not _follow(node.outputs[0], amount * times, users, means):
                return False
        elif node.op in ("split", "split_with_sizes", "unsafe_split") and node.args[-1] == 1 and len(node.args) == 3:
            parts = amount.split([out.shape[1] for out in node.outputs])
            if not all(_follow(out, part, users, means) for out, part in zip(node.outputs, parts, strict=True)):
                return False
        elif node.op == "cat" and len(node.args) > 1 and node.args[1] == 1 and times == 1:
            sizes = [v.shape[1] for v in node.inputs]
            at = sum(sizes[: [v.number for v in node.inputs].index(value.number)])
            whole = amount.new_zeros(sum(sizes))
            whole[at : at + len(amount)] = amount
            if not _follow(node.outputs[0], whole, users, means):
                return False
        elif node.op in _PASS and len(node.outputs[0].shape) > 1 and node.outputs[0].shape[1] == len(amount):
            if 1 not in node.outputs[0].axes or not _follow(node.outputs[0], amount, users, means):
                return False
        else:
            return False
    return value.number in users
