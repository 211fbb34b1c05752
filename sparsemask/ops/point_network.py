"""A segmentation network on points in evaluation, as one call: blocks of point convolutions and the joins between them.

It is what :mod:`sparsemask.ops.point_block` computes block by block; a backend that has it whole saves the calls.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sparsemask.ops.point_block import Folded
from sparsemask.ops.registration import register

Layer = tuple[Tensor, Tensor, Tensor]
"""Weight (C, C_in [+ 3]), table (cells, C) — unused by a 1×1 convolution — and bias (C,), the batch norm folded in."""


@dataclass
class BlockWeights:
    """One block of the network.

    Attributes:
        folded: its weights.
        dense: bool (L, C), the dense channels of each layer.
        kept: True: all points are kept, False: none; None: the mask branch decides.
        branch: a 1×1 and two point convolutions, the last of two outputs, drop and keep.
        threshold: of P(keep); 0.5 is the argmax.
        gated: whether sparse inputs reach dense outputs at kept points only.
    """

    folded: Folded
    dense: Tensor
    kept: bool | None
    branch: Sequence[tuple[Tensor, Tensor | None, Tensor]]
    threshold: float
    gated: bool

    @property
    def inputs(self) -> int:
        """Channels that the block takes."""
        return self.folded.weights[0].shape[1] - 3


@dataclass
class PointNetworkWeights:
    """All weights of the network, batch norms folded in.

    Attributes:
        init: weight (C, d_in) and bias of the first 1×1 convolution.
        blocks: fine to coarse.
        joins: coarse to fine, each (weight of the coarse features (C, C_c), of the fine ones (C, C), bias).
        tail: weight and bias of the last two 1×1 convolutions, ReLU after the first.
        radius: half a kernel's edge on every level, metres.
        size: cells of a kernel's cube along an axis.
        nearest: how the blocks' convolutions round to cells, see :func:`sparsemask.ops.point_conv.cells`.
    """

    init: tuple[Tensor, Tensor]
    blocks: Sequence[BlockWeights]
    joins: Sequence[tuple[Tensor, Tensor, Tensor]]
    tail: Sequence[tuple[Tensor, Tensor]]
    radius: Sequence[float]
    size: int
    nearest: bool


class PreparedPointNetwork(Protocol):
    """A backend's form of the network."""

    weights: PointNetworkWeights

    def run(
        self, rows: Tensor, xyz: Tensor, neighbours: list[Tensor], upsample: list[Tensor], batch: int
    ) -> tuple[Tensor, Tensor]:
        """See :func:`point_network`."""


_numbers = itertools.count()
_known: weakref.WeakValueDictionary[int, PreparedPointNetwork] = weakref.WeakValueDictionary()


def enter(prepared: PreparedPointNetwork) -> int:
    """Make a network known by a number, as long as it lives."""
    number = next(_numbers)
    _known[number] = prepared
    return number


def point_network(
    rows: Tensor, xyz: Tensor, neighbours: Sequence[Tensor], upsample: Sequence[Tensor], batch: int, number: int
) -> tuple[Tensor, Tensor]:
    """Compute the network of a number, :func:`enter`.

    Args:
        rows: features (B·N, d_in) float32.
        xyz: (B·N, 3), relative to the middle of each sample.
        neighbours: of every level, (B, N_l, K) int32, each sample's own indices.
        upsample: of every level but the coarsest, coarse to fine, (B, N_l) int32.
        batch: B.
        number: of the network.

    Returns:
        Logits (B·N, classes), and the points' masks of all levels in turn, bool (sum of B·N_l,).
    """
    logits, masks = torch.ops.sparsemask.point_network(rows, xyz, list(neighbours), list(upsample), batch, number)
    return logits, masks


def _run(
    rows: Tensor, xyz: Tensor, neighbours: list[Tensor], upsample: list[Tensor], batch: int, number: int
) -> tuple[Tensor, Tensor]:
    return _known[number].run(rows, xyz, neighbours, upsample, batch)


def _fake(rows, xyz, neighbours, upsample, batch, number):
    count = sum(one.shape[0] * one.shape[1] for one in neighbours)
    return rows.new_empty(rows.shape[0], len(_known[number].weights.tail[1][0])), rows.new_empty(
        count, dtype=torch.bool
    )


def _flops(rows, xyz, neighbours, upsample, batch, number, *_, out_val=None, **__) -> int:
    counts = [one.shape[0] * one.shape[1] for one in neighbours]
    return 2 * count_multiply_adds(_known[number].weights, neighbours, out_val[1].split(counts))


def count_multiply_adds(weights: PointNetworkWeights, neighbours: Sequence[Tensor], masks: Sequence[Tensor]) -> int:
    """Multiply-adds of a network under the masks of its levels."""
    counts = [one.shape[0] * one.shape[1] for one in neighbours]
    total = counts[0] * (weights.init[0].numel() + sum(weight.numel() for weight, _ in weights.tail))
    for block, count, mask, near in zip(weights.blocks, counts, masks, neighbours, strict=True):
        total += _block_adds(block, count, int(mask.sum()), near.shape[2])
    for (left, right, _), fine, coarse in zip(weights.joins, counts[-2::-1], counts[::-1], strict=False):
        total += fine * right.numel() + coarse * left.numel()
    return total


def _block_adds(block: BlockWeights, count: int, kept: int, k: int) -> int:
    """Multiply-adds of a block: at all points, and what sparse channels add at kept ones."""
    f, dropped = block.folded, count - kept
    total = count * f.shortcut.numel() if f.shortcut is not None else 0
    if block.kept is None:
        for weight, table, _ in block.branch:
            total += count * weight.numel() + (0 if table is None else k * count * len(weight))
    before = block.inputs
    for weight, own in zip(f.weights, block.dense, strict=True):
        wide, mine = len(weight), int(own.sum())
        total += count * (before + 3) * wide + kept * (weight.shape[1] - 3 - before) * wide
        total += (k + wide) * (kept * wide + dropped * mine)
        before = mine
    return total


register("point_network", _run, fake=_fake, flops=_flops)
