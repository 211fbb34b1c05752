"""Fold batch norms into the convolutions before them, found by tracing."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsemask.inference import fold_batch_norm
from sparsemask.spaces.group_sparsity.border import border_weights
from sparsemask.spaces.group_sparsity.channels import ChannelGraph, trace


@torch.no_grad()
def fold_norms(network: nn.Module, example: Tensor) -> nn.Module:
    """Fold batch norms into the convolutions before them, in place and irreversibly.

    They are found by one run rather than by names, so that users' networks and convolutions with borders
    (:mod:`sparsemask.spaces.group_sparsity.border`) are folded as well. Norms that cannot be folded stay.

    Args:
        network: changed in place; put into evaluation mode.
        example: inputs (B, C, ...), of which the first is used.

    Returns:
        The network.

    Raises:
        UseError: the network cannot be traced.
    """
    network.eval()
    for conv, name in _in_turn(network, trace(network, example[:1])):
        module, norm = network.get_submodule(conv), network.get_submodule(name)
        scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
        fold_batch_norm(module, norm)
        if border_weights(module) is not None:
            module.border *= scale.view(-1, *[1] * (module.border.dim() - 1))
            if module.border_map is not None:
                module.border_map *= scale.view(1, -1, *[1] * (module.border_map.dim() - 2))
        network.set_submodule(name, nn.Identity())
    return network


def _in_turn(network: nn.Module, graph: ChannelGraph) -> list[tuple[str, str]]:
    """(convolution, batch norm) pairs where only the batch norm reads the convolution's output."""
    readers: dict[int, list] = {}
    for node in graph.all_nodes:
        for number in {value.number for value in node.inputs}:
            readers.setdefault(number, []).append(node)
    pairs = []
    for node in graph.nodes:
        name = graph.module_of(node)
        if not node.weight.parameter.endswith(".weight") or (node.op == "convolution" and node.args[6]):
            continue
        after = readers.get(node.outputs[0].number, [])
        if border_weights(network.get_submodule(name)) is not None and len(after) == 1 and after[0].op == "add":
            after = readers.get(after[0].outputs[0].number, [])
        if len(after) != 1 or not after[0].op.endswith("batch_norm"):
            continue
        mean = next((v.parameter for v in after[0].inputs if v.parameter.endswith(".running_mean")), "")
        norm = mean.rpartition(".")[0]
        if norm and isinstance(module := network.get_submodule(norm), _BatchNorm) and module.affine:
            pairs.append((name, norm))
    return pairs
