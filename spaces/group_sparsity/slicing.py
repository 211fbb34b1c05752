"""Parameters that change their shape in place, and the channel numbers that modules keep beside them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd


def owner(network: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that holds a parameter or buffer (or child), and its last name."""
    place, _, last = name.rpartition(".")
    return network.get_submodule(place), last


def tensors(network: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers by name."""
    return {**dict(network.named_parameters()), **dict(network.named_buffers())}


@torch.no_grad()
def reshape_(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give parameters and buffers new values of any shape; then every module's channel numbers follow.

    The Parameter objects stay the same, their gradients are dropped. Whole groups only are ever removed from a
    grouped convolution, so that its number of groups shrinks with its outputs.
    """
    own = tensors(network)
    touched: dict[int, tuple[nn.Module, int]] = {}
    for name, value in values.items():
        module, last = owner(network, name)
        tensor = own[name]
        if last == "weight":
            touched[id(module)] = module, tensor.shape[0]
        else:
            touched.setdefault(id(module), (module, 0))
        tensor.grad = None
        tensor.data = value.detach().to(tensor).clone()
    for module, rows in touched.values():
        _renumber(module, rows)


def keep_(network: nn.Module, axes: Mapping[str, Mapping[int, np.ndarray]], alive: np.ndarray) -> None:
    """Slice every tensor along the dimensions given.

    Args:
        axes: by name of parameter or buffer: elements along some of its dimensions.
        alive: bool, by element.
    """
    own, changed = tensors(network), {}
    for name, dims in axes.items():
        value = own[name].detach()
        for dim, elements in dims.items():
            kept = alive[elements]
            if not kept.all():
                value = value.index_select(dim, torch.from_numpy(np.flatnonzero(kept)).to(value.device))
        if value.shape != own[name].shape:
            changed[name] = value
    reshape_(network, changed)


def _renumber(module: nn.Module, rows_before: int) -> None:
    """Channel numbers from the shapes of the tensors; `rows_before`: of the weight, 0 where it did not change."""
    if isinstance(module, _ConvNd):
        rows, columns = module.weight.shape[:2]
        if rows_before and module.groups > 1:
            module.groups = module.groups * rows // rows_before
        wide = columns * module.groups
        transposed = isinstance(module, _ConvTransposeNd)
        module.in_channels, module.out_channels = (rows, wide) if transposed else (wide, rows)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, _NormBase):
        held = module.weight if module.weight is not None else module.running_mean
        module.num_features = len(held)
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.numel()
