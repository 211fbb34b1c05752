"""Merge pairs into single convolutions, and undo it.

Of W = U A the product has k²·c·n multiply-adds a position, the pair r·(k²·c + n): below rank r = k²cn / (k²c + n) the
pair is cheaper (Li et al. 2020, arXiv 2003.08935, section 3.1). Time on a device may differ;
:mod:`sparsemask.prune.group_sparsity` measures it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn

from sparsemask.errors import UseError
from sparsemask.spaces.group_sparsity.border import add_bias, add_border, border_weights
from sparsemask.spaces.group_sparsity.matrices import Pair


def pairs(network: nn.Module) -> dict[str, Pair]:
    """All pairs of a network, by name."""
    return {name: module for name, module in network.named_modules() if isinstance(module, Pair)}


def merge(network: nn.Module, names: Iterable[str] | None = None) -> dict[str, Pair]:
    """Replace pairs by the single convolutions they are equal to, in place.

    Args:
        network: changed in place.
        names: of pairs; None: all.

    Returns:
        The replaced pairs by name; :func:`split` puts the same objects back.

    Raises:
        UseError: a name that is no pair; nothing is changed then.
    """
    by_name = pairs(network)
    names = list(by_name if names is None else names)
    for name in names:
        if name not in by_name:
            raise UseError(f"'{name}' is no pair of this network; its pairs: {', '.join(by_name) or 'none'}")
    replaced = {}
    for name in names:
        replaced[name] = by_name[name]
        network.set_submodule(name, merged(by_name[name]))
    return replaced


@torch.no_grad()
def merged(pair: Pair) -> nn.Conv2d:
    """The single convolution equal to a pair, including a bias and border of its first convolution."""
    first, second = pair
    conv = pair.merged()
    matrix = second.weight.flatten(1)
    if first.bias is not None:
        add_bias(conv, matrix @ first.bias)
    if (border := border_weights(first)) is not None:
        add_border(conv, (matrix @ border.flatten(1)).view(-1, *border.shape[1:]))
        conv.train(pair.training)
    return conv


def split(network: nn.Module, replaced: Mapping[str, Pair]) -> None:
    """Undo :func:`merge` in place with the pairs that it returned; changes of the merged convolutions are lost."""
    for name, pair in replaced.items():
        network.set_submodule(name, pair)


def merged_is_cheaper(kernel: int, c_in: np.ndarray, rank: np.ndarray, c_out: np.ndarray) -> np.ndarray:
    """Whether one convolution has at most as many multiply-adds as the pair, elementwise.

    Args:
        kernel: area of the kernel.
        c_in: input channels.
        rank: filters between the two convolutions.
        c_out: output channels.
    """
    c_in, rank, c_out = map(np.asarray, (c_in, rank, c_out))
    return kernel * c_in * c_out <= rank * (kernel * c_in + c_out)


def paying(network: nn.Module) -> list[str]:
    """Names of the pairs that take at least as many multiply-adds as the single convolution they are equal to."""
    names = []
    for name, pair in pairs(network).items():
        first, second = pair
        kernel = int(np.prod(first.kernel_size))
        if merged_is_cheaper(kernel, first.in_channels, first.out_channels, second.out_channels):
            names.append(name)
    return names
