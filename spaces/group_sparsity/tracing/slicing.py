"""Change shapes of parameters in place and update the channel numbers of their modules."""

from __future__ import annotations

from collections.abc import Mapping

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
def reshape_(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers new values of any shape, in place, and update the modules' channel numbers.

    Parameter objects stay the same, their gradients are dropped. Grouped convolutions only ever lose whole groups, so
    that the number of groups shrinks with the outputs.

    Args:
        network: changed in place.
        values: new tensors by name of parameter or buffer.
    """
    current = tensors(network)
    touched: dict[int, tuple[nn.Module, int]] = {}
    for name, value in values.items():
        module, last = owner(network, name)
        tensor = current[name]
        if last == "weight":
            touched[id(module)] = module, tensor.shape[0]
        else:
            touched.setdefault(id(module), (module, 0))
        tensor.grad = None
        tensor.data = value.detach().to(tensor).clone()
    for module, rows in touched.values():
        _renumber(module, rows)


def keep_(network: nn.Module, axes: Mapping[str, Mapping[int, np.ndarray]], alive: np.ndarray) -> None:
    """Keep the entries of every tensor whose elements are alive, in place.

    Args:
        network: changed in place.
        axes: by name of parameter or buffer: elements along some of its dimensions.
        alive: bool, by element.
    """
    current, changed = tensors(network), {}
    for name, dims in axes.items():
        value = current[name].detach()
        for dim, elements in dims.items():
            kept = alive[elements]
            if not kept.all():
                value = value.index_select(dim, torch.from_numpy(np.flatnonzero(kept)).to(value.device))
        if value.shape != current[name].shape:
            changed[name] = value
    reshape_(network, changed)


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
