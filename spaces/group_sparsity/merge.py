"""Pairs made one convolution again, and back.

Of W = U A the product has k²·c·n multiply-adds a position, the pair r·(k²·c + n): below rank r = k²cn / (k²c + n) the
pair is the cheaper one (Li et al. 2020, arXiv 2003.08935, section 3.1). What a device needs is another question;
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
    """Replace pairs by the one convolution each is equal to, in place.

    Args:
        names: of pairs; None merges all.

    Returns the pairs that were replaced; :func:`split` puts the same objects back, bit for bit. Raises UseError, before
    anything changes, for a name that is no pair.
    """
    found = pairs(network)
    names = list(found if names is None else names)
    for name in names:
        if name not in found:
            raise UseError(f"'{name}' is no pair of this network; its pairs: {', '.join(found) or 'none'}")
    taken = {}
    for name in names:
        taken[name] = found[name]
        network.set_submodule(name, merged(found[name]))
    return taken


@torch.no_grad()
def merged(pair: Pair) -> nn.Conv2d:
    """The one convolution that does the same, with the bias and border that compression may have given the first."""
    first, second = pair
    conv = pair.merged()
    matrix = second.weight.flatten(1)
    if first.bias is not None:
        add_bias(conv, matrix @ first.bias)
    if (border := border_weights(first)) is not None:
        add_border(conv, (matrix @ border.flatten(1)).view(-1, *border.shape[1:]))
        conv.train(pair.training)
    return conv


def split(network: nn.Module, taken: Mapping[str, Pair]) -> None:
    """Undo :func:`merge`, in place, with the pairs that it returned; what the merged ones learnt meanwhile is lost."""
    for name, pair in taken.items():
        network.set_submodule(name, pair)


def merged_is_cheaper(kernel: int, c_in: np.ndarray, rank: np.ndarray, c_out: np.ndarray) -> np.ndarray:
    """bool: where one convolution of kernel area `kernel` has fewer multiply-adds than the pair, or as many."""
    c_in, rank, c_out = map(np.asarray, (c_in, rank, c_out))
    return kernel * c_in * c_out <= rank * (kernel * c_in + c_out)


def paying(network: nn.Module) -> list[str]:
    """Names of the pairs that cost no fewer multiply-adds than the one convolution they are equal to."""
    names = []
    for name, pair in pairs(network).items():
        first, second = pair
        kernel = int(np.prod(first.kernel_size))
        if merged_is_cheaper(kernel, first.in_channels, first.out_channels, second.out_channels):
            names.append(name)
    return names
