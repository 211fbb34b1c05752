"""The space of SMPointSeg networks: masks select the points and channels that are computed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
from torch import Tensor, nn

from sparsemask.config import flag
from sparsemask.costs import count_parameters
from sparsemask.flags import NetworkSection
from sparsemask.options import factor, positive
from sparsemask.spaces import register
from sparsemask.spaces.smpointseg import checkpoints
from sparsemask.spaces.smpointseg.block import Reading
from sparsemask.spaces.smpointseg.network import SMPointSeg
from sparsemask.spaces.sparse_conv.masked_space import MaskedSpace
from sparsemask.spaces.sparse_conv.masking import hard_masks
from sparsemask.tables import format_count
from sparsemask.tasks.points.clouds.batch import PointBatch

_PAPER_POINTS = 50_000  # the size at which the paper counts


@dataclass(frozen=True, kw_only=True, slots=True)
class SMPointSegNetwork(NetworkSection):
    """Which network of points, and how public weights are read. What is None the task decides, as published."""

    d_in: int | None = flag(None, positive, help="channels of a point (default: the task's)")
    n_class: int | None = flag(None, positive, help="classes (default: the task's)")
    channels: Sequence[int] | None = flag(None, positive, nargs="+", help="of the levels (default: as published)")
    n_neighbors: int = flag(16, positive, help="of a point, itself included (default: 16)")
    radius: float | None = flag(None, factor, help="half the kernel's edge, in metres (default: as published)")
    ratio: int = flag(4, positive, help="points of a level over the next (default: 4)")
    pretrained_model: str | None = flag(help="weights of the whole network: any checkpoint or safetensors file")
    kernel_batch_mix: bool = flag(False, help="public code's: samples read each other's kernel cells")
    index_rule: str = flag("trunc", choices=("trunc", "round"), help="cells in evaluation (default: trunc)")
    tail_bias_count: int = flag(1, int, choices=(1, 2), help="public code's: 2 in evaluation (default: 1)")
    point_mask: str = flag("argmax", choices=("argmax", "all"), help="public code's: all (default: argmax)")
    s2d: str = flag(
        "gated",
        choices=("gated", "full"),
        help="sparse inputs to dense outputs at kept points, or everywhere as in public training (default: gated)",
    )


class SMPointSegSpace(MaskedSpace):
    """Point-cloud segmentation networks whose masks are learnt with their weights (Wang et al., TPAMI 2022)."""

    name = "smpointseg"
    fixed = ("d_in", "n_class", "channels", "n_neighbors", "radius", "ratio", "layers")
    task = "sample"
    section = SMPointSegNetwork
    weights_name = "smpointseg"
    # Epochs of the published run and its schedules, in them; the loss has no ramp.
    published = {"epochs": 100, "sparse": 0.04, "sparse_epochs": 0, "tau_epochs": 30.0, "tau_end": 0.1}

    def supernet(self, config) -> SMPointSeg:
        """Build the network with soft masks."""
        return SMPointSeg(**self.arguments(config), reading=reading_of(config))

    def build(self, state: Mapping[str, Tensor], what: object, description: Mapping | None = None) -> SMPointSeg:
        """Build the network of a state dict, in evaluation mode; description: `n_neighbors`, `radius`, `ratio`."""
        return checkpoints.build(state, what, description)

    def configure(self, network: SMPointSeg, config: Mapping) -> None:
        """Set the variants of the computation from flags."""
        network.reading = reading_of(config)

    def dense_cost(self, network: SMPointSeg, batch: PointBatch, published: bool = False) -> int:
        """Count multiply-adds on crops with everything kept; published: of masked layers alone, as the paper counts."""
        return multiply_adds(network, batch.sizes, published) * len(batch)

    def published_row(self, network: SMPointSeg, share: float) -> str:
        """Return size and cost in the paper's convention: parameters, and multiply-adds of a crop of 50 000 points."""
        sizes = [_PAPER_POINTS // network.ratio**level for level in range(len(network.channels))]
        dense, printed = (multiply_adds(network, sizes, published) for published in (False, True))
        count = count_parameters(network) - sum(2 * mask.size for mask in hard_masks(network).values())
        return (
            f"at {_PAPER_POINTS} points: {format_count(count, 'k')} parameters, multiply-adds {dense / 1e9:.2f} G "
            f"with everything kept (by convolving neighbours one by one, as published, {printed / 1e9:.2f} G), "
            f"{share * dense / 1e9:.2f} G at these crops' share"
        )

    def size_words(self, shape: Sequence[int]) -> str:
        """Return a crop's size as text."""
        return f"{shape[-1]} points"

    def dense_form(self, network: SMPointSeg) -> nn.Module:
        """Return the same weights without masks, the baseline for timing."""
        return DensePoints(network)

    def exportable(self, network: SMPointSeg, batch: PointBatch, options, mask=None):
        """Describe the network for retrain/export.py; see :class:`sparsemask.exporting.Exportable`."""
        from sparsemask.spaces.smpointseg.export import exportable

        return exportable(self, network, batch)

    def draw_masks(self, inputs: PointBatch, masks: list[np.ndarray], path, title=None, names=None) -> None:
        """Draw the kept points of every level of one crop, masks bool (1, N_l) or (N_l,)."""
        from sparsemask.pictures.point_clouds.figures import draw_kept

        xyz = inputs.features[0, :3].t().float().numpy()
        draw_kept(path, xyz, [np.asarray(mask).reshape(-1) for mask in masks], title=title)


class DensePoints(nn.Module):
    """A network's weights without its masks: every point and channel computed, no mask branch."""

    def __init__(self, network: SMPointSeg):
        super().__init__()
        self.network = network

    def forward(self, batch: PointBatch) -> Tensor:
        """Crops to logits (B, n_class, N), in evaluation."""
        return self.network.compute(batch, masked=False)[0]


def reading_of(options: Mapping) -> Reading:
    """Select the variants of the computation from options."""
    return Reading(
        **{field.name: options[field.name] for field in fields(Reading) if options.get(field.name) is not None}
    )


def multiply_adds(network: SMPointSeg, sizes: list[int], published: bool = False) -> int:
    """Count multiply-adds on one crop when every point and channel is kept.

    Counted are executed ones, without mask branches, biases, pooling and products with masks.

    Args:
        network: the SMPointSeg.
        sizes: points of each level.
        published: count masked layers alone, as the paper does, K·(C_in + 1)·C_out a point: 6.65 G for S3DIS's
            configuration and 6.85 G for SemanticKITTI's at 50 000 points.
    """
    if published:
        return sum(sum(block.costs(n)) for block, n in zip(network.encoder, sizes, strict=True))
    plain = [network.init, network.tail[0], network.tail[2]]
    count = sum(layer.conv.weight.numel() for layer in plain) * sizes[0]
    for block, n in zip(network.encoder, sizes, strict=True):
        for layer in block.body:
            count += n * (layer.conv.weight.numel() + block.neighbours * block.outputs)
        count += n * block.tail[0].weight.numel()
        count += n * block.shortcut[0].weight.numel() if block.inputs != block.outputs else 0
    for stage, n in zip(network.decoder, reversed(sizes[:-1]), strict=True):
        outputs, width = stage.conv.weight.shape
        coarse = width - outputs  # joined before they are copied to the finer points
        count += outputs * (outputs * n + coarse * (n // network.ratio))
    return count


register(SMPointSegSpace.name, SMPointSegSpace())
