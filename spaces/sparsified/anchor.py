"""Masks that stay where they were started while the features that mask branches read are trained."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.config import RunConfig
from sparsemask.spaces.sparsified.network import MaskBranch, RegionMasks, SparsifiedNetwork, dense_pass

_GROUP = "mask branch"


class MaskAnchor(nn.Module):
    """The masks that a network begins with, as a function of its input, and the dense network's output.

    A mask branch reads features. Where these are trained and the branch is not, masks wander: what is dropped changes
    while the weights adapt to what was. Anchored branches learn to draw, on the features as they become, what they drew
    on the dense network's. The mask of an input so stays what it was, and the weights adapt to it.

    Args:
        network: with the dense network's weights and its masks as started; it is copied.
    """

    def __init__(self, network: SparsifiedNetwork):
        super().__init__()
        self.start = copy.deepcopy(network).eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The dense network's output on inputs (N, C, H, W), and for each region the mask (N, 1, H, W) to be drawn."""
        output, read = dense_pass(self.start, x, {region.entry for region in self.start.regions})
        pairs = zip(self.start.regions, self.start.region_masks, strict=True)
        return output, [cast(RegionMasks, masks).hard_mask(read[region.entry]) for region, masks in pairs]

    def loss(self, network: SparsifiedNetwork, wanted: Sequence[Tensor]) -> Tensor:
        """Cross entropy between a network's mask branches and the masks to be drawn, summed over regions.

        Args:
            network: behind a forward pass in training; its branches alone get gradients.
            wanted: of the same inputs.
        """
        total = wanted[0].new_zeros((), dtype=torch.float32)
        for number, x in network.read.items():
            masks = cast(RegionMasks, network.region_masks[number])
            if not masks.opened:
                logits = masks.spa_mask.logits(x).float()
                target = wanted[number].to(logits.dtype)
                total = total + F.binary_cross_entropy_with_logits(logits[:, 1:] - logits[:, :1], target)
        return total

    def shift(self, amount: float) -> None:
        """Add to the logits of the masks to be drawn."""
        for logits in self.start.budget_logits():
            logits.add_(amount)

    def groups(self, network: SparsifiedNetwork, config: RunConfig) -> list[dict]:
        """The optimizer's parameter groups of mask branches: the first layers, a group each, and the others."""
        branches = _branches(network)
        rest = [p for branch in branches for p in branch.parameters() if p is not branch.first().weight]
        groups = [
            {"name": f"{_GROUP} {number}", "params": [branch.first().weight], "lr": config.training.lr}
            for number, branch in enumerate(branches)
        ]
        return [*groups, {"name": "mask branches", "params": rest, "lr": config.training.lr}]

    def thaw(self, network: SparsifiedNetwork) -> None:
        """Let mask branches be trained, whose masks are hard."""
        for branch in _branches(network):
            branch.requires_grad_(True)

    def scale_rates(self, groups: Sequence[dict]) -> None:
        """Make the steps of first layers relative to their weights, which are as small as features are large."""
        branches = enumerate(_branches(self.start))
        rates = {f"{_GROUP} {number}": _size(cast(Tensor, branch.first().weight)) for number, branch in branches}
        for group in groups:
            group["lr"] *= rates.get(group.get("name"), 1.0)

    def state(self) -> dict[str, Tensor]:
        """The mask branches, for a checkpoint; the other weights are the dense network's."""
        return {name: value.clone() for name, value in self.start.region_masks.state_dict().items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` once returned."""
        self.start.region_masks.load_state_dict(state)


def _branches(network: SparsifiedNetwork) -> list[MaskBranch]:
    return [cast(RegionMasks, masks).spa_mask for masks in network.region_masks]


def _size(weight: Tensor) -> float:
    """Root mean square of a layer's weights over that of a new layer's, as torch makes it."""
    return float(weight.square().mean().sqrt()) * math.sqrt(3 * weight[0].numel())
