"""Hard masks of networks made of sparse mask blocks: read out, put in, counted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.spaces.sparse_conv.masked_network import LocationMask, MaskedNetwork
from sparsemask.sparse import budget_loss, set_mask_mode


def blocks(network: nn.Module) -> dict[str, nn.Module]:
    """The network's sparse mask blocks, those with channel logits `ch_mask`, by module name, in order."""
    # Of parameters, which protocols do not see.
    return {
        name: module
        for name, module in network.named_modules()
        if "ch_mask" in dict(module.named_parameters(recurse=False))
    }


def channel_logits(block: nn.Module) -> Tensor:
    """A block's channel logits as a view (layers, channels, 2), index 0 dense, however its checkpoints lay them out."""
    logits = block.ch_mask
    return logits[0].transpose(0, 1) if logits.ndim == 4 else logits


def hard_masks(network: nn.Module) -> dict[str, np.ndarray]:
    """Every block's channel masks, bool (layers, channels), True is dense; ties are dense."""
    found = {}
    for name, block in blocks(network).items():
        dense, sparse = channel_logits(block).detach().unbind(-1)
        found[name] = np.ascontiguousarray((dense >= sparse).cpu().numpy())
    return found


def apply_masks(network: nn.Module, channels: Mapping[str, np.ndarray], threshold: float = 0.5) -> None:
    """Make hard channel masks and the data masks' threshold the network's own; UseError where they do not fit.

    Channel logits that say otherwise are overwritten.
    """
    known = blocks(network)
    if set(known) != set(channels):
        odd = sorted(set(known) ^ set(channels))
        raise UseError(f"these masks are of another network: {len(channels)} modules for {len(known)} ({odd[0]})")
    for name, block in known.items():
        wanted = torch.as_tensor(np.ascontiguousarray(np.atleast_2d(channels[name])))
        logits = channel_logits(block).detach()
        if wanted.shape != logits.shape[:2]:
            found, expected = (" x ".join(map(str, shape)) for shape in (wanted.shape, logits.shape[:2]))
            raise UseError(f"these masks are of another network: {name} has {found} layers x channels for {expected}")
        with torch.no_grad():
            wrong = (logits[..., 0] >= logits[..., 1]) != wanted.to(logits.device)
            logits[wrong] = torch.stack([wanted, ~wanted], -1).to(logits)[wrong]
    set_threshold(network, threshold)


def set_threshold(network: nn.Module, threshold: float) -> None:
    """Keep a location where P(keep) is above `threshold`, in all data masks; 0.5 is the argmax."""
    for branch in _branches(network):
        branch.threshold = float(threshold)


def threshold_of(network: nn.Module) -> float:
    """The threshold that all of its data masks have; 0.5 without any."""
    return next((branch.threshold for branch in _branches(network)), 0.5)


def _branches(network: nn.Module) -> Iterator[LocationMask]:
    return (module for module in network.modules() if isinstance(module, LocationMask))


def fix_masks(network: nn.Module) -> None:
    """Masks fixed: hard in training too, channel logits and mask branches frozen; the weights still train."""
    set_mask_mode(network, "hard")


def mean_kept(network: MaskedNetwork, hard: bool = False) -> Tensor:
    """Kept fraction of a network by its last forward pass, differentiable in soft masks. hard: as if they were hard.

    The mean over all modules and layers; where the network says what share of the multiply-adds each layer has
    (`kept_weights`), weighted by it, with the share of what has no masks (`kept_base`) added.
    """
    kept = network.hard_kept if hard else network.kept
    weights = network.kept_weights
    if not weights:
        return budget_loss(kept)
    total = torch.stack([(share * one).sum() for share, one in zip(weights, kept, strict=True)]).sum()
    total = total + network.kept_base
    return total if total.requires_grad else total.clamp_max(1.0)  # with mask branches it can be more than dense
