"""The operator `sparsemask::packed_point_network`: a network on points with its weights, for exported programs.

See :mod:`sparsemask.ops.point_network`, whose operator names a network of this process. Weights are known again by
being the same tensors, not compared. For inference, one crop.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsemask.ops import dispatch
from sparsemask.ops.packed import Packed, Packer, Reader
from sparsemask.ops.point_block import Folded, row_linear, sparse_block
from sparsemask.ops.point_conv import Level, cells
from sparsemask.ops.point_network import (
    BlockWeights,
    PointNetworkWeights,
    PreparedPointNetwork,
    count_multiply_adds,
)
from sparsemask.ops.registration import register
from sparsemask.ops.weight_cache import Lasting

SCHEMA = (
    "(Tensor rows, Tensor xyz, Tensor[] neighbours, Tensor[] upsample, Tensor numbers, Tensor flags, int[] layout, "
    "float[] reals) -> Tensor"
)
_prepared: Lasting[tuple[PointNetworkWeights, PreparedPointNetwork | None]] = Lasting()


def pack(weights: PointNetworkWeights) -> Packed:
    """Weights as the operator takes them."""
    packer = Packer()
    packer.word(len(weights.tail[-1][0]), weights.size, weights.nearest, len(weights.blocks), len(weights.joins))
    packer.real(*weights.radius)
    packer.tensor(*weights.init)
    for block in weights.blocks:
        f = block.folded
        packer.word(len(f.weights), -1 if block.kept is None else block.kept, block.gated)
        packer.real(block.threshold)
        packer.tensor(*f.weights, *f.tables, *f.biases, f.tail, f.tail_bias, f.kept_bias, f.shortcut, block.dense)
        for layer in block.branch:
            packer.tensor(*layer)
    for join in weights.joins:
        packer.tensor(*join)
    for layer in weights.tail:
        packer.tensor(*layer)
    return packer.packed()


def unpack(packed: Packed) -> PointNetworkWeights:
    """The weights again, as views of the packed ones."""
    reader = Reader(packed)
    word, tensor = reader.word, reader.tensor
    _, size, nearest, n_blocks, n_joins = (word() for _ in range(5))
    radius = [reader.real() for _ in range(n_blocks)]
    init = (tensor(), tensor())
    blocks = []
    for _ in range(n_blocks):
        count, kept, gated = word(), word(), bool(word())
        threshold = reader.real()
        lists = [[tensor() for _ in range(count)] for _ in range(3)]
        folded = Folded(*lists, tensor(), tensor(), tensor(), reader.maybe())
        dense = tensor()
        branch = [(tensor(), reader.maybe(), tensor()) for _ in range(3)]
        blocks.append(BlockWeights(folded, dense, None if kept < 0 else bool(kept), branch, threshold, gated))
    joins = [(tensor(), tensor(), tensor()) for _ in range(n_joins)]
    tail = [(tensor(), tensor()) for _ in range(2)]
    return PointNetworkWeights(init, blocks, joins, tail, radius, size, bool(nearest))


def packed_point_network(
    rows: Tensor, xyz: Tensor, neighbours: list[Tensor], upsample: list[Tensor], packed: Packed
) -> Tensor:
    """Logits (N, classes).

    Args:
        rows: features (N, d_in) float32.
        xyz: (N, 3), relative to the middle.
        neighbours: of every level, (1, N_l, K) int32.
        upsample: of every level but the coarsest, coarse to fine, (1, N_l) int32.
        packed: weights.
    """
    return torch.ops.sparsemask.packed_point_network(
        rows, xyz, neighbours, upsample, packed.numbers, packed.flags, packed.layout, packed.reals
    )


def _known(rows: Tensor, packed: Packed) -> tuple[PointNetworkWeights, PreparedPointNetwork | None]:
    chosen = dispatch.chosen_for(rows)

    def prepare() -> tuple[PointNetworkWeights, PreparedPointNetwork | None]:
        weights = unpack(packed)
        return weights, chosen.point_network(weights)

    return _prepared.get([packed.numbers, packed.flags], chosen, prepare)


def _run(rows, xyz, neighbours, upsample, numbers, flags, layout, reals) -> Tensor:
    weights, whole = _known(rows, Packed(numbers, flags, layout, reals))
    if whole is not None:
        return whole.run(rows, xyz, neighbours, upsample, 1)[0]
    return _by_operators(rows, xyz, neighbours, upsample, weights)[0]


def _by_operators(
    rows: Tensor, xyz: Tensor, neighbours: list[Tensor], upsample: list[Tensor], weights: PointNetworkWeights
) -> tuple[Tensor, list[Tensor]]:
    """(logits, the masks of all levels), block by block."""
    rows, skips, masks = row_linear(rows, *weights.init), [], []
    for number, (block, near) in enumerate(zip(weights.blocks, neighbours, strict=True)):
        near, count = near[0], near.shape[1]
        at = xyz[:count]
        if number:
            rows = torch.ops.sparsemask.point_means(rows, neighbours[number - 1][0, :count].contiguous())
        level = body = Level(at, near, cells(at, near, weights.radius[number]))
        if weights.nearest:
            body = Level(at, near, cells(at, near, weights.radius[number], "round"))
        masks.append(_mask(rows, level, block))
        rows = sparse_block(rows, body, masks[-1], block.dense, block.folded, block.gated)
        skips.append(rows)
    for (left, right, bias), nearest, skip in zip(weights.joins, upsample, reversed(skips[:-1]), strict=True):
        rows = row_linear(skip, right, bias, row_linear(rows, left, relu=False), nearest[0])
    first, last = weights.tail
    return row_linear(row_linear(rows, *first), *last, relu=False), masks


def _mask(rows: Tensor, level: Level, block: BlockWeights) -> Tensor:
    """The points that a block keeps."""
    if block.kept is not None:
        return torch.full((len(rows),), block.kept, dtype=torch.bool, device=rows.device)
    (first, _, bias), *layers = block.branch
    y = row_linear(rows, first, bias)
    for weight, table, bias in layers:
        last = weight is layers[-1][0]
        y = torch.ops.sparsemask.point_conv(
            y, weight, table, bias, level.xyz, level.neighbours, level.cells, not last
        )  # fmt: skip
    drop, keep = y[:, 0], y[:, 1]
    return keep > drop if block.threshold == 0.5 else torch.sigmoid(keep - drop) > block.threshold


def _fake(rows, xyz, neighbours, upsample, numbers, flags, layout, reals):
    return rows.new_empty(rows.shape[0], layout[0])


def _flops(rows, xyz, neighbours, upsample, numbers, flags, layout, reals, *_, out_val=None, **__) -> int:
    """By its masks, which are computed again."""
    weights = unpack(Packed(numbers, flags, layout, reals))
    return 2 * count_multiply_adds(weights, neighbours, _by_operators(rows, xyz, neighbours, upsample, weights)[1])


register("packed_point_network", _run, schema=SCHEMA, fake=_fake, flops=_flops)
