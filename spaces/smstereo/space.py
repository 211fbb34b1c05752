"""The space of SMStereo networks: masks select the voxels of the cost volume and the channels that are computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sparsemask.config import flag
from sparsemask.costs import count_parameters
from sparsemask.flags import NetworkSection
from sparsemask.options import natural, positive
from sparsemask.spaces import register
from sparsemask.spaces.smstereo import checkpoints
from sparsemask.spaces.smstereo.network import SMStereo
from sparsemask.spaces.sparse_conv.masked_space import MaskedSpace
from sparsemask.spaces.sparse_conv.masking import hard_masks
from sparsemask.tables import format_count

_PAPER_SIZE = (544, 960)  # of a SceneFlow image, padded


@dataclass(frozen=True, kw_only=True, slots=True)
class SMStereoNetwork(NetworkSection):
    """Which stereo network."""

    maxdisp: int = flag(192, positive, help="disparities, a multiple of 16 (default: 192)")
    groups: int = flag(40, positive, help="of the correlation (default: 40)")
    concat: int = flag(0, natural, help="channels of a concatenation volume too, GwcNet-gc: 12 (default: 0)")
    pretrained_model: str | None = flag(help="weights: a GwcNet's, any checkpoint of this network, safetensors")


class SMStereoSpace(MaskedSpace):
    """Stereo networks whose masks are learnt with their weights (Wang et al., TPAMI 2022)."""

    name = "smstereo"
    fixed = ("maxdisp", "groups", "concat")
    task = "stereo"
    section = SMStereoNetwork
    weights_name = "smstereo"
    # Epochs of the published run on SceneFlow; the paper does not say how fast τ falls: over half of it.
    published = {"epochs": 16, "sparse": 0.1, "sparse_epochs": 1, "tau_epochs": 8.0, "tau_end": 0.4}

    def supernet(self, config) -> SMStereo:
        """Build the network with soft masks."""
        return SMStereo(**self.arguments(config))

    def load_weights_into(self, network: SMStereo, state: Mapping[str, Tensor], source: object) -> None:
        """Load weights, a GwcNet's too."""
        checkpoints.load_into(network, state, source)

    def build(self, state: Mapping[str, Tensor], what: object, description: Mapping | None = None) -> SMStereo:
        """Build the network of a state dict, in evaluation mode; description: `maxdisp`."""
        return checkpoints.build(state, what, description)

    def dense_cost(self, network: SMStereo, pair, published: bool = False) -> int:
        """Count multiply-adds on pairs with everything kept, without mask branches; published: as the paper counts."""
        return sum(multiply_adds(network, *pair.shape[-2:], published).values()) * pair.shape[0]

    def published_row(self, network: SMStereo, share: float) -> str:
        """Return size and cost in the paper's convention: parameters, and multiply-adds at 540 × 960."""
        dense, printed = (multiply_adds(network, *_PAPER_SIZE, published) for published in (False, True))
        count = count_parameters(network) - sum(2 * mask.size for mask in hard_masks(network).values())
        total = sum(dense.values())
        return (
            f"at 960x540, {network.maxdisp} disparities: {format_count(count, 'k')} parameters, multiply-adds "
            f"{total / 1e9:.0f} G with everything kept (aggregation {(total - dense['encoder']) / 1e9:.0f} G, as "
            f"published papers count {(sum(printed.values()) - printed['encoder']) / 1e9:.0f} G), "
            f"{share * total / 1e9:.0f} G at these pairs' share"
        )

    def dense_form(self, network: SMStereo) -> nn.Module:
        """Return the same weights without masks, the baseline for timing."""
        return DenseStereo(network)

    def exportable(self, network: SMStereo, batch, options, mask=None):
        """Describe the network for retrain/export.py; see :class:`sparsemask.exporting.Exportable`."""
        from sparsemask.spaces.smstereo.export import exportable

        return exportable(self, network, batch)

    def draw_masks(self, inputs, masks: list[np.ndarray], path, title=None, names=None) -> None:
        """Draw the kept voxels of every layer, bool (D, h, w), summed over disparities, over the left image."""
        from sparsemask.pictures.stereo import draw_voxels

        draw_voxels(inputs.left[0], [np.asarray(mask) for mask in masks], path, title)


class DenseStereo(nn.Module):
    """A network's weights without its masks: every voxel and channel computed, no mask branch."""

    def __init__(self, network: SMStereo):
        super().__init__()
        self.network = network

    def forward(self, pair) -> Tensor:
        """Pairs to disparities (B, H, W), in evaluation."""
        return self.network.compute(pair.left, pair.right, masked=False)[0][-1]


def multiply_adds(network: SMStereo, height: int, width: int, published: bool = False) -> dict[str, int]:
    """Count multiply-adds of the dense form's parts on one pair.

    Args:
        network: the SMStereo.
        height: of the images, a multiple of 16.
        width: of the images, a multiple of 16.
        published: count transposed convolutions at the size of their output, as the paper's table does; else as
            executed.

    Returns:
        By part: "encoder" (both images and the volume), "aggregation" (before the hourglasses), "hourglasses", "head".
    """
    return dict(_multiply_adds(tuple(network.config.items()), height, width, published))


@lru_cache(maxsize=64)
def _multiply_adds(config: tuple, height: int, width: int, published: bool) -> dict[str, int]:
    with torch.device("meta"):
        twin = SMStereo(**dict(config)).eval()
        image = torch.empty(1, 3, height, width)
    counted = {}

    def count(name, run):
        with FlopCounterMode(display=False) as counter:
            out = run()
        counted[name] = counter.get_total_flops() // 2
        return out

    with torch.enable_grad():  # nothing is folded
        volume = count("encoder", lambda: twin.volume(image, image))
        x = count("aggregation", lambda: twin.aggregate(volume))
        count("hourglasses", lambda: twin.dres2.everything(x))
        count("head", lambda: twin.regress(twin.classif3, x, (height, width)))
    counted["hourglasses"] *= 3
    if published:
        voxels = volume[0, 0].numel()
        for conv, size in ((twin.dres2.conv5, voxels // 8), (twin.dres2.conv6, voxels)):
            # The convention counts all eight phases of a location, one of which is executed.
            counted["hourglasses"] += 3 * size * conv.pair[0].weight.numel() * 7 // 8
    return counted


register(SMStereoSpace.name, SMStereoSpace())
