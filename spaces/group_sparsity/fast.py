"""Networks prepared for timing and inference: batch norms folded, borders precomputed, the faster memory format."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sparsemask.inference import fold_batch_norm, optimize_for_inference
from sparsemask.spaces.group_sparsity.compression.border import Bordered, fix_borders, remove_border
from sparsemask.spaces.group_sparsity.pairs import DoubleReLU, Pair, TwoSlopes
from sparsemask.spaces.group_sparsity.tracing.graph import ChannelGraph, trace
from sparsemask.timing import compare, make_inputs, timer

_VECTOR = 16  # channels
_CLOSE = 1e-4  # of the largest output
_SECONDS = 1.0  # after which no further round begins, once there are enough


@torch.no_grad()
def fold_norms(network: nn.Module, example: Tensor) -> nn.Module:
    """Fold batch norms into the convolutions before them, in place and irreversibly.

    They are found by one run rather than by names, so that users' networks and convolutions with borders
    (:mod:`sparsemask.spaces.group_sparsity.compression.border`) are folded as well. Norms that cannot be folded stay.

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
        if isinstance(module, Bordered):
            module.scale_border(scale)
        network.set_submodule(name, nn.Identity())
    return network


def _in_turn(network: nn.Module, graph: ChannelGraph) -> list[tuple[str, str]]:
    """(convolution, batch norm) pairs where only the batch norm reads the convolution's output."""
    pairs = []
    for node in graph.nodes:
        name = graph.module_of(node)
        if not node.weight.parameter.endswith(".weight") or node.transposed or node.weight.parameter in graph.shared:
            continue  # a layer that runs several times may have several norms
        after = graph.readers.get(node.outputs[0].number, [])
        if isinstance(network.get_submodule(name), Bordered) and len(after) == 1 and after[0].op == "add":
            after = graph.readers.get(after[0].outputs[0].number, [])
        mean = after[0].running_mean if len(after) == 1 else ""
        norm = "" if mean in graph.shared else mean.rpartition(".")[0]
        if norm and isinstance(module := network.get_submodule(norm), _BatchNorm) and module.affine:
            pairs.append((name, norm))
    return pairs


def folded(network: nn.Module, example: Tensor) -> nn.Module:
    """Return a copy in evaluation mode, batch norms folded into the convolutions before them, borders precomputed.

    Slopes of double ReLUs are numbers in it.
    """
    result = copy.deepcopy(network).eval()
    fix_borders(result, example)
    fold_norms(result, example)
    for name, module in list(result.named_modules()):
        if isinstance(module, DoubleReLU):
            result.set_submodule(name, module.fixed())
    if not any(isinstance(module, TwoSlopes | Bordered) for module in result.modules()):
        return result
    rewritten = copy.deepcopy(result)
    for module in list(rewritten.modules()):
        if isinstance(module, nn.Sequential):
            _scale_ahead(module)
            _absorb_borders(module)
    return rewritten if _alike(result, rewritten, example[:1]) else result


@torch.no_grad()
def _alike(network: nn.Module, other: nn.Module, example: Tensor) -> bool:
    """Whether outputs agree; where something reads what lies between layers of a sequence they may not."""
    try:
        wanted, found = network(example), other(example)
    except RuntimeError:  # of channels that do not fit
        return False
    both = isinstance(wanted, Tensor) and isinstance(found, Tensor) and wanted.shape == found.shape
    return both and torch.allclose(found, wanted, rtol=0, atol=_CLOSE * float(wanted.abs().max()), equal_nan=True)


def _convolution(layer: nn.Module | None, part: int) -> nn.Conv2d | None:
    """A layer that is a convolution, or a pair's first (0) or second (1) one; None of other layers."""
    conv = layer[part] if isinstance(layer, Pair) else layer
    return conv if isinstance(conv, nn.Conv2d) else None


@torch.no_grad()
def _scale_ahead(layers: nn.Sequential) -> None:
    """Give the slopes above zero of two-sloped activations to the convolutions right before them, in place."""
    before: nn.Module | None = None
    for layer in layers:
        conv = _convolution(before, 1)
        if isinstance(layer, TwoSlopes) and conv is not None and layer.above > 0:
            conv.weight *= layer.above
            if conv.bias is not None:
                conv.bias *= layer.above
            if isinstance(conv, Bordered):
                conv.scale_border(torch.full_like(conv.weight[:, 0, 0, 0], layer.above))
            layer.above, layer.below = 1.0, layer.below / layer.above
        if not isinstance(layer, nn.Identity):
            before = layer


@torch.no_grad()
def _absorb_borders(layers: nn.Sequential) -> None:
    """Let the convolution before an activation make the input of ones that a border is for, in place.

    It gets a channel without weights, of bias 1, which an activation leaves as it is; the border's weights read it.
    That is faster than a map that is added, and holds for any size. Where channels fill whole vectors the map stays.
    """
    several = [layer for layer in layers if not isinstance(layer, nn.Identity)]
    for before, between, behind in zip(several, several[1:], several[2:], strict=False):
        maker, reader = _convolution(before, 1), _convolution(behind, 0)
        keeps_one = isinstance(between, nn.ReLU) or (isinstance(between, TwoSlopes) and between.above == 1)
        if maker is None or not isinstance(reader, Bordered) or not keeps_one:
            continue
        if maker.groups != 1 or reader.groups != 1 or isinstance(maker, Bordered) or maker.out_channels % _VECTOR == 0:
            continue
        bias = maker.bias if maker.bias is not None else maker.weight.new_zeros(maker.out_channels)
        maker.weight = nn.Parameter(torch.cat([maker.weight, torch.zeros_like(maker.weight[:1])]))
        maker.bias = nn.Parameter(torch.cat([bias, torch.ones_like(bias[:1])]))
        maker.out_channels += 1
        reader.weight = nn.Parameter(torch.cat([reader.weight, reader.border], 1))
        reader.in_channels += 1
        remove_border(reader)


def fast_form(network: nn.Module, shape: Sequence[int], batch: int, device, compiled: bool = False):
    """Optimise a network for inputs of one shape.

    Args:
        network: moved to `device`.
        shape: (C, H, W).
        batch: inputs at once.
        device: to run on.
        compiled: also measure the compiled form and take the faster one.

    Returns:
        A callable of one input, whose `form` names the chosen form, and an example input.
    """
    example = make_inputs((batch, *shape), device)[0]
    with torch.no_grad():
        ready = folded(network.to(device), example)
    return optimize_for_inference(ready, example, compiled=None if compiled else False), example


def compare_times(
    networks: dict[str, nn.Module], shape: Sequence[int], batch: int, device, compiled: bool = False, rounds: int = 9
) -> dict[str, float]:
    """Time networks in their fast forms, in turn.

    Eager forms are timed by :func:`sparsemask.timing.timer`, which other processes disturb least; medians of a busy
    machine once made a target of half the time 6 %.

    Args:
        networks: by name.
        shape: (C, H, W) of an input.
        batch: inputs at once.
        device: to run on.
        compiled: also consider compiled forms.
        rounds: timed calls of each, at least.

    Returns:
        Milliseconds for a batch, by name.
    """
    forms = {name: fast_form(network, shape, batch, device, compiled) for name, network in networks.items()}
    calls = {name: (lambda form=form, x=x: form(x)) for name, (form, x) in forms.items()}
    if compiled:
        return compare(calls, rounds=rounds, device=device)
    times, _ = timer(torch.device(device), torch.get_num_threads(), _SECONDS, warm=True)(dict(calls), rounds)
    return {name: times[name] for name in networks}
