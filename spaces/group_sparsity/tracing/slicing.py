"""Change shapes of parameters in place and update the channel numbers of their modules."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def owner(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter or buffer (or child), and its last name."""
    parent, _, last = name.rpartition(".")
    return network.get_submodule(parent), last


def tensors(network: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


@torch.no_grad()
def reshape_(network: nn.Module, values: Mapping[str, Tensor], fixed_groups: Collection[str] = ()) -> None:
    """Give parameters and buffers new values of any shape, in place, and update the modules' channel numbers.

    Parameter objects stay the same, in their memory format; their gradients are dropped. Grouped convolutions lose
    whole groups, so that the number of groups shrinks with the outputs, unless they are said to keep it.

    Args:
        network: changed in place.
        values: new tensors by name of parameter or buffer.
        fixed_groups: names of the grouped convolutions that lose the same channels of every group.
    """
    _assign(network, {name: value.detach().clone() for name, value in values.items()}, fixed_groups)


def _assign(network: nn.Module, values: Mapping[str, Tensor], fixed_groups: Collection[str]) -> None:
    """Do as :func:`reshape_` with tensors that nobody else holds."""
    current, names = tensors(network), _owners(network)
    touched: dict[int, tuple[nn.Module, int]] = {}
    for name, value in values.items():
        tensor = current[name]
        for module, last, path in names[id(tensor)]:
            if last == "weight":
                touched[id(module)] = module, 0 if path in fixed_groups else tensor.shape[0]
            else:
                touched.setdefault(id(module), (module, 0))
        tensor.grad = None
        tensor.data = value.to(tensor, memory_format=memory_format(tensor))
    for module, rows in touched.values():
        _renumber(module, rows)


def memory_format(tensor: Tensor) -> torch.memory_format:
    """The memory format in which new values of a tensor are kept: channels-last where it is, otherwise their own."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(tensor.dim())
    if last is None or tensor.stride()[1] != 1 or tensor.stride()[-1] != tensor.shape[1]:
        return torch.preserve_format
    return last if tensor.is_contiguous(memory_format=last) else torch.preserve_format


def _owners(network: nn.Module) -> dict[int, list[tuple[nn.Module, str, str]]]:
    """By id of a parameter or buffer: the modules that hold it, several if they share it; its name there; theirs."""
    owners: dict[int, list[tuple[nn.Module, str, str]]] = {}
    for path, module in network.named_modules():
        held = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        for last, tensor in held:
            owners.setdefault(id(tensor), []).append((module, last, path))
    return owners


def keep_(
    network: nn.Module,
    axes: Mapping[str, Mapping[int, np.ndarray]],
    alive: np.ndarray,
    fixed_groups: Collection[str] = (),
    hollow: bool = False,
) -> None:
    """Keep the entries of every tensor whose elements are alive, in place.

    Args:
        network: changed in place.
        axes: by name of parameter or buffer: elements along some of its dimensions.
        alive: bool, by element.
        fixed_groups: as for :func:`reshape_`.
        hollow: whether tensors that lose entries only get their sizes, with zeros.
    """
    current, changed = tensors(network), {}
    for name, dims in axes.items():
        kept = {dim: alive[elements] for dim, elements in dims.items()}
        kept = {dim: mask for dim, mask in kept.items() if not mask.all()}
        value = current[name].detach()
        if kept and hollow:
            changed[name] = value.new_zeros([kept[d].sum() if d in kept else n for d, n in enumerate(value.shape)])
        elif kept:
            for dim, mask in kept.items():
                value = value.index_select(dim, torch.from_numpy(np.flatnonzero(mask)).to(value.device))
            changed[name] = value
    _assign(network, changed, fixed_groups)


def _renumber(module: nn.Module, rows_before: int) -> None:
    """Set channel numbers from tensor shapes; `rows_before`: the weight's rows before, 0 if it did not change."""
    if isinstance(module, _ConvNd):
        rows, columns = module.weight.shape[:2]
        if rows_before and module.groups > 1:
            module.groups = max(1, module.groups * rows // rows_before)
        wide = columns * module.groups
        transposed = isinstance(module, _ConvTransposeNd)
        module.in_channels, module.out_channels = (rows, wide) if transposed else (wide, rows)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        tensor = module.weight if module.weight is not None else module.running_mean
        module.num_features = len(tensor)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
    elif isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) == 1:
        module.normalized_shape = tuple(module.weight.shape)
    elif isinstance(module, nn.GroupNorm):
        module.num_channels = len(module.weight)
        if rows_before:
            module.num_groups = max(1, module.num_groups * module.num_channels // rows_before)
    elif isinstance(module, nn.Embedding):
        module.num_embeddings, module.embedding_dim = module.weight.shape
    elif isinstance(module, nn.RNNBase):
        module.input_size = module.get_parameter("weight_ih_l0").shape[1]
