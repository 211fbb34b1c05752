"""Read, set and count the hard masks of networks made of sparse mask blocks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.spaces.sparse_conv.masked_network import LocationMask, MaskedNetwork
from sparsemask.sparse import budget_loss, set_mask_mode
from sparsemask.weights import unbuilt_parts, under


def blocks(network: nn.Module) -> dict[str, nn.Module]:
    """Return the sparse mask blocks (modules with channel logits `ch_mask`) by name, in order."""
    # By their parameters, which runtime protocols do not see.
    return {
        name: module
        for name, module in network.named_modules()
        if "ch_mask" in dict(module.named_parameters(recurse=False))
    }


def channel_logits(block: nn.Module) -> Tensor:
    """Return a view of a block's channel logits, (layers, channels, 2), index 0 dense, for any stored layout."""
    logits = block.ch_mask
    return logits[0].transpose(0, 1) if logits.ndim == 4 else logits


def hard_masks(network: nn.Module) -> dict[str, np.ndarray]:
    """Return every block's channel mask by name, bool (layers, channels), True is dense; ties are dense."""
    masks = {}
    for name, block in blocks(network).items():
        dense, sparse = channel_logits(block).detach().unbind(-1)
        masks[name] = np.ascontiguousarray((dense >= sparse).cpu().numpy())
    return masks


def apply_masks(network: nn.Module, channels: Mapping[str, np.ndarray], threshold: float = 0.5) -> None:
    """Set a network's hard channel masks and the data masks' threshold; contradicting logits are overwritten.

    Args:
        network: changed in place.
        channels: by block name, bool (layers, channels), True is dense; those of blocks that are not built are left
            out.
        threshold: of P(keep), in [0, 1).

    Raises:
        UseError: masks of another network.
    """
    known, unbuilt = blocks(network), unbuilt_parts(network)
    channels = {name: mask for name, mask in channels.items() if not under(name, unbuilt)}
    if set(known) != set(channels):
        odd = sorted(set(known) ^ set(channels))
        raise UseError(f"these masks are of another network: {len(channels)} modules for {len(known)} ({odd[0]})")
    for name, block in known.items():
        mask = torch.as_tensor(np.ascontiguousarray(np.atleast_2d(channels[name])))
        logits = channel_logits(block).detach()
        if mask.shape != logits.shape[:2]:
            actual, expected = (" x ".join(map(str, shape)) for shape in (mask.shape, logits.shape[:2]))
            raise UseError(f"these masks are of another network: {name} has {actual} layers x channels for {expected}")
        with torch.no_grad():
            wrong = (logits[..., 0] >= logits[..., 1]) != mask.to(logits.device)
            logits[wrong] = torch.stack([mask, ~mask], -1).to(logits)[wrong]
    set_threshold(network, threshold)


def set_threshold(network: nn.Module, threshold: float) -> None:
    """Set the threshold on P(keep) of all data masks; 0.5 is the argmax."""
    for branch in _branches(network):
        branch.threshold = float(threshold)


def threshold_of(network: nn.Module) -> float:
    """Return the threshold of the data masks; 0.5 without any."""
    return next((branch.threshold for branch in _branches(network)), 0.5)


def _branches(network: nn.Module) -> Iterator[LocationMask]:
    return (module for module in network.modules() if isinstance(module, LocationMask))


def fix_masks(network: nn.Module) -> None:
    """Make masks hard in training too and freeze channel logits and mask branches; other weights still train."""
    set_mask_mode(network, "hard")


def mean_kept(network: MaskedNetwork, hard: bool = False) -> Tensor:
    """Compute the kept fraction of a network's last forward pass.

    It is the mean over all modules and layers; with `kept_weights` it is the weighted sum plus `kept_base`, which is
    the executed fraction of all multiply-adds.

    Args:
        network: after a forward pass.
        hard: of hard masks instead of soft ones.

    Returns:
        A scalar, differentiable in soft masks.
    """
    kept = network.hard_kept if hard else network.kept
    weights = network.kept_weights
    if not weights:
        return budget_loss(kept)
    total = torch.stack([(weight * fractions).sum() for weight, fractions in zip(weights, kept, strict=True)]).sum()
    total = total + network.kept_base
    return total if total.requires_grad else total.clamp_max(1.0)  # with mask branches it can be more than dense
