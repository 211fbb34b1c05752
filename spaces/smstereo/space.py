"""The space of SMStereo networks: which voxels of the cost volume, and which channels, need to be computed?"""

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

_PAPER_SIZE = (544, 960)  # of a SceneFlow picture, padded


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
        """The network with soft masks."""
        return SMStereo(**self.arguments(config))

    def load_weights_into(self, network: SMStereo, state: Mapping[str, Tensor], source: object) -> None:
        """Start a network from weights, a GwcNet's too."""
        checkpoints.load_into(network, state, source)

    def build(self, state: Mapping[str, Tensor], what: object, said: Mapping | None = None) -> SMStereo:
        """The network of a state dict, in evaluation mode. said: maxdisp, which no weight tells."""
        return checkpoints.build(state, what, said)

    def dense_cost(self, network: SMStereo, pair, published: bool = False) -> int:
        """Multiply-adds on pairs with everything kept, without mask branches; `published`: as the paper counts."""
        return sum(multiply_adds(network, *pair.shape[-2:], published).values()) * pair.shape[0]

    def published_row(self, network: SMStereo, share: float) -> str:
        """Size and cost as the paper gives them: parameters, and multiply-adds at 540 × 960, disparity as built."""
        dense, printed = (multiply_adds(network, *_PAPER_SIZE, published) for published in (False, True))
        count = count_parameters(network) - sum(2 * mask.size for mask in hard_masks(network).values())
        whole = sum(dense.values())
        return (
            f"at 960x540, {network.maxdisp} disparities: {format_count(count, 'k')} parameters, multiply-adds "
            f"{whole / 1e9:.0f} G with everything kept (aggregation {(whole - dense['encoder']) / 1e9:.0f} G, as "
            f"published papers count {(sum(printed.values()) - printed['encoder']) / 1e9:.0f} G), "
            f"{share * whole / 1e9:.0f} G at these pairs' share"
        )

    def dense_form(self, network: SMStereo) -> nn.Module:
        """The same weights without masks, to be timed against."""
        return DenseStereo(network)

    def exportable(self, network: SMStereo, batch, options, mask=None):
        """What retrain/export.py writes; see :class:`sparsemask.exporting.Exportable`."""
        from sparsemask.spaces.smstereo.export import exportable

        return exportable(self, network, batch)

    def draw_masks(self, inputs, masks: list[np.ndarray], path, title=None, names=None) -> None:
        """Draw the kept voxels of every layer, bool (D, h, w), summed over disparities, over the left picture."""
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
    """Multiply-adds of the dense form's parts on one pair, sizes multiples of 16.

    encoder (both pictures, and the volume), aggregation (before the hourglasses), hourglasses, head. True ones, as they
    are executed; `published`: transposed convolutions counted at the size of their output, as the paper's table does.
    """
    return dict(_multiply_adds(tuple(network.config.items()), height, width, published))


@lru_cache(maxsize=64)
def _multiply_adds(config: tuple, height: int, width: int, published: bool) -> dict[str, int]:
    with torch.device("meta"):
        twin = SMStereo(**dict(config)).eval()
        picture = torch.empty(1, 3, height, width)
    counted = {}

    def count(name, run):
        with FlopCounterMode(display=False) as counter:
            out = run()
        counted[name] = counter.get_total_flops() // 2
        return out

    with torch.enable_grad():  # nothing is folded
        volume = count("encoder", lambda: twin.volume(picture, picture))
        x = count("aggregation", lambda: twin.aggregate(volume))
        count("hourglasses", lambda: twin.dres2.everything(x))
        count("head", lambda: twin.regress(twin.classif3, x, (height, width)))
    counted["hourglasses"] *= 3
    if published:
        voxels = volume[0, 0].numel()
        for conv, size in ((twin.dres2.conv5, voxels // 8), (twin.dres2.conv6, voxels)):
            # Seven of eight taps of a place are counted though none is multiplied.
            counted["hourglasses"] += 3 * size * conv.pair[0].weight.numel() * 7 // 8
    return counted


register(SMStereoSpace.name, SMStereoSpace())
