"""Hard masks of networks made of sparse mask blocks: read out, put in, counted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.sparse import DataMask, SparseMaskBlock, harden_channels, set_mask_mode


def blocks(network: nn.Module) -> dict[str, SparseMaskBlock]:
    """The network's sparse mask blocks by module name, in order."""
    return {name: one for name, one in network.named_modules() if isinstance(one, SparseMaskBlock)}


def hard_masks(network: nn.Module) -> dict[str, np.ndarray]:
    """Every block's channel masks, bool (layers, channels), True is dense; ties are dense."""
    return {
        name: np.ascontiguousarray(harden_channels(block.ch_mask.detach()).cpu().numpy())
        for name, block in blocks(network).items()
    }


def apply_masks(network: nn.Module, channels: Mapping[str, np.ndarray], threshold: float = 0.5) -> None:
    """Make hard channel masks and the data masks' threshold the network's own; UseError where they do not fit.

    Channel logits that say otherwise are overwritten.
    """
    known = blocks(network)
    if set(known) != set(channels):
        odd = sorted(set(known) ^ set(channels))
        raise UseError(f"these masks are of another network: {len(channels)} modules for {len(known)} ({odd[0]})")
    for name, block in known.items():
        wanted = torch.as_tensor(np.ascontiguousarray(np.atleast_2d(channels[name]).T))
        if wanted.shape != block.ch_mask.shape[1:3]:
            found = " x ".join(map(str, reversed(wanted.shape)))
            expected = " x ".join(map(str, reversed(block.ch_mask.shape[1:3])))
            raise UseError(f"these masks are of another network: {name} has {found} layers x channels for {expected}")
        with torch.no_grad():
            logits = block.ch_mask[0]
            wrong = (logits[..., 0] >= logits[..., 1]) != wanted.to(logits.device)
            logits[wrong] = torch.stack([wanted, ~wanted], -1).to(logits)[wrong]
    set_threshold(network, threshold)


def set_threshold(network: nn.Module, threshold: float) -> None:
    """Keep a location where P(keep) is above `threshold`, in all data masks; 0.5 is the argmax."""
    for module in network.modules():
        if isinstance(module, DataMask):
            module.threshold = float(threshold)


def fix_masks(network: nn.Module) -> None:
    """Masks fixed: hard in training too, channel logits and mask branches frozen; the weights still train."""
    set_mask_mode(network, "hard")


def mean_kept(kept: list[Tensor]) -> float:
    """Mean kept fraction over all modules and layers, of a network's `kept` after a forward pass."""
    return float(torch.stack([one.detach().float().mean() for one in kept]).mean())
