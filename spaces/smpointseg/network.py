"""SMPointSeg: point cloud segmentation that computes only at kept points and in dense channels.

Wang et al., "Sparse Mask CNNs", TPAMI 2022, section 4; an encoder and decoder like RandLA-Net's (arXiv 1911.11236).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.ops.point_block import row_linear
from sparsemask.ops.point_conv import Level, cells, point_means
from sparsemask.spaces.smpointseg.block import Reading, SparsePointBlock
from sparsemask.spaces.smpointseg.layers import BasicConv, Join, folded_of
from sparsemask.spaces.smpointseg.whole import whole
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork
from sparsemask.tasks.points.clouds.batch import PointBatch

CONFIGS = {
    "s3dis": {"d_in": 6, "n_class": 13, "channels": (32, 64, 128, 256, 512), "n_neighbors": 16, "radius": 0.05},
    "semantickitti": {"d_in": 3, "n_class": 19, "channels": (36, 72, 144, 288), "n_neighbors": 16, "radius": 0.1},
}


class SMPointSeg(MaskedNetwork):
    """The network, under the public checkpoints' names.

    Args:
        d_in: input channels, the first three x, y, z in metres.
        n_class: classes.
        channels: of the blocks, fine to coarse; every level has a `ratio`-th of the finer one's points.
        n_neighbors: K, neighbours of a point, itself included.
        radius: half the kernel's edge at the finest level, metres; it doubles from level to level.
        ratio: points of a level over points of the next.
        layers: point convolutions of a block.
        reading: variants of the computation, see :class:`Reading`.

    In evaluation the masks are hard and dropped points are skipped; in training they are soft, `tau` is the softmax's
    temperature and `noise` says whether Gumbel noise is added. After a forward pass `kept` holds, block by block, the
    (L,) kept fractions of its layers, `hard_kept` those of hard masks, `kept_weights` the fractions of all
    multiply-adds by which the paper weighs them, and `masks` the point masks, bool (B, 1, N_l).

    Raises:
        UseError: an argument out of range.
    """

    in_one_call = True

    def __init__(
        self,
        d_in: int = 6,
        n_class: int = 13,
        channels: Sequence[int] = (32, 64, 128, 256, 512),
        n_neighbors: int = 16,
        radius: float = 0.05,
        ratio: int = 4,
        layers: int = 2,
        reading: Reading | None = None,
    ):
        super().__init__()
        if d_in < 3 or n_class < 2 or not channels or min(channels) < 1 or n_neighbors < 2 or ratio < 1 or layers < 1:
            raise UseError(
                f"SMPointSeg needs 3 or more input channels, 2 or more classes and neighbours, and channels: got "
                f"{d_in}, {n_class}, {n_neighbors}, {tuple(channels)}"
            )
        if not radius > 0:
            raise UseError(f"SMPointSeg's radius must be above 0 metres, got {radius}")
        self.d_in, self.n_class, self.channels = d_in, n_class, tuple(channels)
        self.n_neighbors, self.radius, self.ratio, self.layers = n_neighbors, float(radius), ratio, layers
        self.reading = reading or Reading()
        self.tau, self.noise = 1.0, True
        self.kept: list[Tensor] = []
        self.hard_kept: list[Tensor] = []
        self.kept_weights: list[Tensor] = []
        self.masks: list[Tensor] = []
        self._costs: dict[Hashable, list[Tensor]] = {}  # of the last batch's sizes
        widths = [channels[0], *channels]
        self.init = BasicConv(d_in, channels[0])
        self.encoder = nn.ModuleList(
            SparsePointBlock(a, b, layers, n_neighbors) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )
        back = list(reversed(channels))
        self.decoder = nn.ModuleList(Join(a + b, b) for a, b in zip(back[:-1], back[1:], strict=True))
        self.tail = nn.Sequential(
            BasicConv(channels[0], 32), nn.Dropout(0.5), BasicConv(32, n_class, norm=False, relu=False)
        )

    @property
    def config(self) -> dict[str, object]:
        """The arguments that build this network again, without `reading`."""
        return {
            "d_in": self.d_in,
            "n_class": self.n_class,
            "n_neighbors": self.n_neighbors,
            "radius": self.radius,
            "ratio": self.ratio,
            "layers": self.layers,
            "channels": list(self.channels),
        }

    def forward(self, batch: PointBatch) -> Tensor:
        """Crops to logits (B, n_class, N)."""
        self.follow(batch)
        out, kept, hard_kept, masks = self.compute(batch)
        self.kept, self.hard_kept, self.masks = kept, hard_kept, masks
        self.kept_weights = self._shares(tuple(batch.sizes), out.device, out.dtype)
        return out

    def _shares(self, sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
        """The fraction of all multiply-adds in each layer, block by block."""
        key = (sizes, device, dtype)
        if key not in self._costs:
            costs = [block.costs(n) for block, n in zip(self.encoder, sizes, strict=True)]
            total = sum(map(sum, costs))
            with torch.inference_mode(False):
                self._costs = {key: [torch.tensor(own, device=device, dtype=dtype) / total for own in costs]}
        return self._costs[key]

    def compute(self, batch: PointBatch, masked: bool = True):
        """Compute as :meth:`forward`, without setting attributes.

        Args:
            batch: crops.
            masked: False: compute everything everywhere, in evaluation.

        Returns:
            (logits, kept, hard kept, masks).
        """
        self._check(batch)
        form = whole(self, batch, masked)
        if form is not None:
            logits, fractions, points = form(batch)
            parts = list(fractions.unbind(0)) if masked else []
            return logits, parts, parts, points if masked else []
        count, size = batch.features.shape[0], batch.features.shape[2]
        levels, body_levels = self._levels(batch)
        rows = batch.features.transpose(1, 2).reshape(count * size, self.d_in)
        rows = self._plain(self.init, rows)
        skips, kept, hard_kept, masks = [], [], [], []
        for number, block in enumerate(self.encoder):
            level, body_level = levels[number], body_levels[number]
            if number:
                rows = _pool(rows, levels[number - 1].neighbours, count, batch.sizes[number])
            if masked:
                rows, block_kept, hard, mask = block(rows, level, body_level, self.tau, self.noise, self.reading, count)
                kept.append(block_kept)
                hard_kept.append(hard)
                masks.append(mask.view(count, 1, -1))
            else:
                rows = block.open(rows, body_level)
            skips.append(rows)
        for stage, nearest, skip in zip(self.decoder, batch.upsample, reversed(skips[:-1]), strict=True):
            at = _global(nearest, len(rows) // count).view(-1)
            rows = stage(rows, at, skip) if self.training else stage.infer(rows, at, skip)
        logits = self._plain(self.tail[2], self.tail[1](self._plain(self.tail[0], rows)))
        return logits.view(count, size, self.n_class).transpose(1, 2), kept, hard_kept, masks

    def _plain(self, layer: BasicConv, rows: Tensor) -> Tensor:
        """A 1×1 layer; in evaluation with the batch norm folded in."""
        if self.training:
            return layer(rows)
        weight, _, bias = folded_of(layer)
        return row_linear(rows, weight, bias, relu=layer.relu)

    def _levels(self, batch: PointBatch) -> tuple[list[Level], list[Level]]:
        """Every level's points as rows: for the mask branches and for the blocks' point convolutions."""
        xyz = batch.features[:, :3].transpose(1, 2)
        # Only differences are used, which are more exact for small coordinates.
        xyz = (xyz - xyz.mean(1, keepdim=True)).contiguous()
        levels, body = [], []
        rule = "trunc" if self.training else self.reading.index_rule
        for number, neighbours in enumerate(batch.neighbours):
            size = neighbours.shape[1]
            rows = xyz[:, :size].reshape(-1, 3)
            near = _global(neighbours, size).view(-1, neighbours.shape[2])
            radius = self.radius * 2**number
            levels.append(Level(rows, near, cells(rows, near, radius)))
            body.append(levels[-1] if rule == "trunc" else Level(rows, near, cells(rows, near, radius, rule)))
        return levels, body

    def _check(self, batch: PointBatch) -> None:
        """Raise a UseError for a batch that does not fit the network."""
        if len(batch.neighbours) != len(self.channels) or len(batch.upsample) != len(self.channels) - 1:
            raise UseError(f"a crop of {len(batch.neighbours)} levels for a network of {len(self.channels)}")
        if batch.features.ndim != 3 or batch.features.shape[1] != self.d_in:
            raise UseError(f"points of {batch.features.shape[1]} channels for a network of {self.d_in}")
        if batch.neighbours[0].shape[2] != self.n_neighbors:
            raise UseError(f"{batch.neighbours[0].shape[2]} neighbours a point for a network of {self.n_neighbors}")


def _global(index: Tensor, size: int) -> Tensor:
    """Indices (B, n, ...) into each sample's `size` rows as indices into all rows, int32."""
    if len(index) == 1:
        return index.to(torch.int32).contiguous()
    first = torch.arange(len(index), dtype=torch.int32, device=index.device) * size
    return index.to(torch.int32) + first.view(-1, *[1] * (index.ndim - 1))


def _pool(rows: Tensor, neighbours: Tensor, count: int, size: int) -> Tensor:
    """The mean over the neighbours of each sample's first `size` points: rows of the next level."""
    near = neighbours.view(count, -1, neighbours.shape[1])[:, :size].reshape(-1, neighbours.shape[1])
    if torch.is_grad_enabled() and rows.requires_grad:
        return F.embedding_bag(near, rows, mode="mean")
    return point_means(rows, near)
