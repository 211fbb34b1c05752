"""The space of SMSR networks: masks select the locations and channels that are computed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sparsemask.config import Section, flag
from sparsemask.costs import count_parameters
from sparsemask.flags import NetworkSection
from sparsemask.options import natural, positive
from sparsemask.spaces import register
from sparsemask.spaces.smsr import checkpoints
from sparsemask.spaces.smsr.network import SMSR
from sparsemask.spaces.smsr.tiles import self_ensemble, upscale
from sparsemask.spaces.sparse_conv.masked_space import MaskedSpace
from sparsemask.spaces.sparse_conv.masking import hard_masks
from sparsemask.tables import format_count


@dataclass(frozen=True, kw_only=True, slots=True)
class SMSRNetwork(NetworkSection):
    """Which network of super-resolution; its factor is the task's."""

    n_feats: int = flag(64, positive, help="channels (default: 64, as published)")
    n_modules: int = flag(5, positive, help="sparse mask modules (default: 5)")
    pretrained_model: str | None = flag(help="weights of the whole network: any checkpoint or safetensors file")


@dataclass(frozen=True, kw_only=True, slots=True)
class SMSRViews(Section):
    """How large pictures are run."""

    title = "fine-grained masks"
    tile: int = flag(0, natural, help="large pictures in tiles of so many pixels (default: 0)")


class SMSRSpace(MaskedSpace):
    """Super-resolution networks whose masks are learnt with their weights (Wang et al., CVPR 2021)."""

    name = "smsr"
    fixed = ("scale", "n_feats", "n_modules", "n_layers", "reduction")
    task = "super_resolution"
    section = SMSRNetwork
    views = SMSRViews
    weights_name = "smsr_x{scale}"  # name of the weights file to search for

    def supernet(self, config) -> SMSR:
        """Build the network with soft masks."""
        return SMSR(**self.arguments(config))

    def build(self, state: Mapping[str, Tensor], what: object, description: Mapping | None = None) -> SMSR:
        """Build the network of a state dict, in evaluation mode; the description is ignored."""
        return checkpoints.build(state, what, description)

    def dense_cost(self, network: SMSR, images: Tensor, published: bool = False) -> int:
        """Count multiply-adds on images (N, 3, H, W) with everything kept; published: as the papers count."""
        from sparsemask.spaces.smsr.dense import multiply_adds

        return multiply_adds(network, *images.shape[-2:], published) * len(images)

    def published_row(self, network: SMSR, share: float) -> str:
        """Return size and cost in the papers' convention: parameters, and multiply-adds for an output of 1280 × 720."""
        scale = network.config["scale"]
        image = torch.empty(1, 3, 720 // scale, 1280 // scale, device="meta")
        dense, printed = (self.dense_cost(network, image, published) for published in (False, True))
        count = count_parameters(network) - sum(2 * mask.size for mask in hard_masks(network).values())
        return (
            f"at 1280x720: {format_count(count, 'k')} parameters, multiply-adds "
            f"{dense / 1e9:.1f} G dense ({printed / 1e9:.1f} G as published papers count), "
            f"{share * dense / 1e9:.1f} G at these pictures' share"
        )

    def dense_form(self, network: SMSR) -> nn.Module:
        """Return the same weights without masks, the baseline for timing."""
        from sparsemask.spaces.smsr.dense import DenseForm

        return DenseForm(network)

    def layerwise_form(self, network: SMSR, masked: bool) -> nn.Module:
        """Return the network as plain layers, whose features hooks can read; masked: False: everything is kept."""
        from sparsemask.spaces.smsr.dense import MaskedForm

        return MaskedForm(network, open=not masked)

    def prepare(self, colour: np.ndarray) -> Tensor:
        """Turn colours (H, W, 3) of 0 to 255 into an input (1, 3, H, W)."""
        return torch.from_numpy(colour).permute(2, 0, 1)[None]

    def run(self, network: SMSR, images: Tensor, tile: int = 0, ensemble: bool = False) -> Tensor:
        """Run the network on images (N, 3, H, W); arguments as :func:`sparsemask.spaces.smsr.tiles.upscale`."""
        return upscale(network, images, tile, ensemble)

    def run_dense(self, network: SMSR, images: Tensor, ensemble: bool = False) -> Tensor:
        """Run the dense form on whole images (N, 3, H, W)."""
        form = self.dense_form(network)
        return self_ensemble(form, images) if ensemble else form(images)

    def exportable(self, network: SMSR, batch: Tensor, options, mask=None):
        """Describe the network for retrain/export.py; see :class:`sparsemask.exporting.Exportable`."""
        from sparsemask.spaces.smsr.export import exportable

        return exportable(network, batch)

    def draw_masks(self, inputs: Tensor, masks: list, path, title: str | None = None, names=None) -> None:
        """Draw data masks, bool arrays (H, W), over their image (1, 3, H, W) of 0 to 255."""
        from sparsemask.pictures.overlay import draw_masks

        draw_masks(inputs[0].clamp(0, 255).round().byte().permute(1, 2, 0).numpy(), masks, path, title, names)


register(SMSRSpace.name, SMSRSpace())
