"""Export of SMPointSeg: batch norms folded, neighbour indices as inputs, any number of points.

The torch program has the sparse operators; in ONNX everything is computed everywhere and masks multiply.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.exporting import Exportable, pure
from sparsemask.ops.packed import Packed
from sparsemask.ops.packed_point_network import pack, packed_point_network
from sparsemask.ops.point_block import Folded
from sparsemask.ops.point_conv import Level, cells_by_torch
from sparsemask.spaces.smpointseg.block import SparsePointBlock
from sparsemask.spaces.smpointseg.layers import BasicConv, Join
from sparsemask.spaces.smpointseg.network import SMPointSeg
from sparsemask.spaces.smpointseg.whole import weights_of
from sparsemask.tasks.points.clouds.batch import PointBatch


def exportable(space, network: SMPointSeg, batch: PointBatch) -> Exportable:
    """Describe the network as a function from one crop to logits (1, n_class, N).

    Inputs: "features" (1, d_in, N), "neighbours0" ... (1, N_l, K) and "upsample0" ... (1, N_l), coarse to fine, int32,
    as :class:`sparsemask.tasks.points.clouds.batch.PointBatch` has them.

    Args:
        space: the network's space.
        network: in evaluation mode, on the CPU; its masks are exported hard.
        batch: a crop that serves as the example.
    """
    levels = len(network.channels)
    names = ["features", *(f"neighbours{n}" for n in range(levels)), *(f"upsample{n}" for n in range(levels - 1))]
    open_size = torch.export.Dim.DYNAMIC
    call = lambda net, *inputs: net(*inputs)  # noqa: E731
    return Exportable(
        network=network,
        fast=network,
        save=lambda path: space.save(path, network, space.masks_of(network)),
        program=pure(_Whole(network), call),
        plain=pure(_Form(network), call),
        inputs=dict(zip(names, tensors(batch), strict=True)),
        outputs=("logits",),
        dynamic=({2: open_size}, *({1: open_size} for _ in names[1:])),
        tensors=tensors,
        dense=pure(_Form(network, masked=False), call),
    )


def tensors(batch: PointBatch) -> tuple[Tensor, ...]:
    """A crop's tensors, in the order of the inputs."""
    return (batch.features, *batch.neighbours, *batch.upsample)


class _Form(nn.Module):
    """The network of standard operators, its weights folded; masked: whether its masks count."""

    @torch.no_grad()
    def __init__(self, network: SMPointSeg, masked: bool = True):
        super().__init__()
        self.radius, self.rule = network.radius, network.reading.index_rule
        self.begin, self.tail, self.end = (_Layer(layer) for layer in (network.init, network.tail[0], network.tail[2]))
        self.blocks = nn.ModuleList(_Block(layer, network.reading, masked) for layer in network.encoder)
        self.joins = nn.ModuleList(_Join(layer) for layer in network.decoder)

    def forward(self, features: Tensor, *indices: Tensor) -> Tensor:
        """See :func:`exportable`."""
        neighbours, upsample = indices[: len(self.blocks)], indices[len(self.blocks) :]
        xyz = features[0, :3].t()
        xyz = xyz - xyz.mean(0, keepdim=True)
        rows, skips = self.begin(features[0].t()), []
        for number, (block, near) in enumerate(zip(self.blocks, neighbours, strict=True)):
            near, count = near[0], near.shape[1]
            level_xyz = xyz if not number else xyz.index_select(0, torch.arange(count))
            radius = self.radius * 2**number
            level = body = Level(level_xyz, near, cells_by_torch(level_xyz, near, radius))
            if self.rule != "trunc":
                body = Level(level_xyz, near, cells_by_torch(level_xyz, near, radius, self.rule))
            if number:
                before = neighbours[number - 1][0].index_select(0, torch.arange(count))
                rows = rows[before.long()].mean(1)
            rows = block(rows, level, body)
            skips.append(rows)
        for join, nearest, skip in zip(self.joins, upsample, reversed(skips[:-1]), strict=True):
            rows = join(rows, nearest[0], skip)
        return self.end(self.tail(rows)).t()[None]


class _Whole(nn.Module):
    """The network as one operator."""

    def __init__(self, network: SMPointSeg):
        super().__init__()
        self.levels = len(network.channels)
        with torch.no_grad():
            packed = pack(weights_of(network))
        self.register_buffer("numbers", packed.numbers)
        self.register_buffer("flags", packed.flags)
        self._layout, self._reals = packed.layout, packed.reals

    def forward(self, features: Tensor, *indices: Tensor) -> Tensor:
        """See :func:`exportable`."""
        rows = features.transpose(1, 2)
        xyz = rows[..., :3]
        xyz = xyz - xyz.mean(1, keepdim=True)  # to the last bit as the network does it: masks may be on the verge
        packed = Packed(self.numbers, self.flags, self._layout, self._reals)
        neighbours, upsample = list(indices[: self.levels]), list(indices[self.levels :])
        return packed_point_network(rows[0], xyz[0], neighbours, upsample, packed).t()[None]


class _Layer(nn.Module):
    """A 1×1 or point convolution, its norm and ReLU."""

    def __init__(self, layer: BasicConv):
        super().__init__()
        weight, table, bias = layer.folded()
        self.weight, self.bias = (nn.Parameter(tensor.detach().clone(), False) for tensor in (weight, bias))
        self.table = None if table is None else nn.Parameter(table.detach().clone(), False)
        self.relu = layer.relu

    def forward(self, rows: Tensor, level: Level | None = None) -> Tensor:
        if level is None:
            out = F.linear(rows, self.weight, self.bias)
        else:
            out = _aggregate(F.linear(rows, self.weight[:, :-3]), self.weight, self.table, level) + self.bias
        return F.relu(out) if self.relu else out


class _Join(nn.Module):
    """A stage of the decoder."""

    def __init__(self, layer: Join):
        super().__init__()
        weight, _, bias = layer.folded()
        coarse = weight.shape[1] - weight.shape[0]
        parts = (weight[:, :coarse], weight[:, coarse:], bias)
        self.left, self.right, self.bias = (
            nn.Parameter(tensor.detach().contiguous().clone(), False) for tensor in parts
        )

    def forward(self, coarse: Tensor, nearest: Tensor, skip: Tensor) -> Tensor:
        copies = F.linear(coarse, self.left).index_select(0, nearest.long())
        return F.relu(F.linear(skip, self.right, self.bias) + copies)


class _Block(nn.Module):
    """A sparse block with its mask branch."""

    def __init__(self, block: SparsePointBlock, reading, masked: bool = True):
        super().__init__()
        self.masked = masked
        self.locate = nn.ModuleList(_Layer(part) for part in block.pt_mask)
        self.harden, self.all = block.pt_mask.harden, reading.point_mask == "all"
        self.gated = reading.s2d == "gated"
        folded = block.folded(reading.tail_bias_count)
        self.count, self.linked = len(folded.weights), folded.shortcut is not None
        self.numbers = nn.ParameterList(
            nn.Parameter(part.detach().clone(), False)
            for part in (*folded.weights, *folded.tables, *folded.biases, folded.tail, folded.tail_bias,
                         folded.kept_bias, *([folded.shortcut] if self.linked else []))
        )  # fmt: skip
        self.register_buffer("dense", (block.ch_mask[..., 0] >= block.ch_mask[..., 1]).clone())

    @property
    def folded(self) -> Folded:
        """The weights by their names."""
        n, numbers = self.count, list(self.numbers)
        shortcut = numbers[3 * n + 3] if self.linked else None
        return Folded(numbers[:n], numbers[n : 2 * n], numbers[2 * n : 3 * n], *numbers[3 * n : 3 * n + 3], shortcut)

    def forward(self, rows: Tensor, level: Level, body: Level) -> Tensor:
        if not self.masked:
            return self._open(rows, body)
        first, second, third = self.locate
        mask = self.harden(third(second(first(rows), level), level))[:, 0]
        if self.all:
            mask = torch.ones_like(mask)
        return self._masked(rows, body, mask.to(rows.dtype)[:, None])

    def _open(self, rows: Tensor, level: Level) -> Tensor:
        """The block with everything kept."""
        f = self.folded
        x, out = rows, f.kept_bias + (rows if f.shortcut is None else F.linear(rows, f.shortcut))
        tails = f.tail.split(self.dense.shape[1], 1)
        for weight, table, bias, tail in zip(f.weights, f.tables, f.biases, tails, strict=True):
            x = F.relu(_aggregate(F.linear(x, weight[:, :-3]), weight, table, level) + bias)
            out = out + F.linear(x, tail)
        return F.relu(out)

    def _masked(self, rows: Tensor, level: Level, mask: Tensor) -> Tensor:
        """The block with masks that multiply; sparse inputs are convolved separately if dense outputs are gated."""
        f = self.folded
        out = f.tail_bias + mask * (f.kept_bias - f.tail_bias)
        out = out + (rows if f.shortcut is None else F.linear(rows, f.shortcut))
        x, before = rows, torch.ones(rows.shape[1])
        tails = f.tail.split(self.dense.shape[1], 1)
        for number, (weight, table, bias, tail) in enumerate(zip(f.weights, f.tables, f.biases, tails, strict=True)):
            dense = self.dense[number].to(x.dtype)
            features = weight[:, :-3]
            if number and self.gated:
                from_dense = _aggregate(F.linear(x * before, features), weight, table, level)
                from_sparse = _aggregate(F.linear(x * (1 - before), features), weight, table, level, coordinates=False)
                y = from_dense + mask * from_sparse  # what sparse outputs are at dropped points does not matter
            else:
                y = _aggregate(F.linear(x, features), weight, table, level)
            x = F.relu(y + bias) * torch.maximum(mask, dense)
            out = out + F.linear(x, tail)
            before = dense
        return F.relu(out)


def _aggregate(g: Tensor, weight: Tensor, table: Tensor, level: Level, coordinates: bool = True) -> Tensor:
    """Aggregate W·features over the neighbours, all at once; coordinates: include the points' coordinates."""
    near, at = level.neighbours.long(), level.cells.long()
    first = g
    if coordinates:
        g = g + level.xyz @ weight[:, -3:].t()
    differences = table[at[:, 1:]] * (g[near[:, 1:]] - g[:, None])
    return table[at[:, 0]] * first + differences.sum(1)
