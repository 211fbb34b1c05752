"""SMPointSeg's sparse block: point and channel masks, and point convolutions that skip dropped points."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.ops import dispatch
from sparsemask.ops.point_block import Folded, row_linear, sparse_block
from sparsemask.ops.point_conv import Level
from sparsemask.ops.point_network import BlockWeights
from sparsemask.ops.weight_cache import Derived, last
from sparsemask.spaces.smpointseg.layers import BasicConv, PointConv, RowNorm, folded_of
from sparsemask.spaces.sparse_conv.masked_network import MaskModule
from sparsemask.sparse import gumbel_mask, kept_fraction

_folded = Derived()


@dataclass(frozen=True)
class Reading:
    """Variants of the computation; defaults follow the paper, others the public code, for weights trained with it.

    Attributes:
        kernel_batch_mix: samples of a batch use each other's kernel cells.
        index_rule: rounding of cell indices in evaluation: "trunc" as in training, or "round".
        tail_bias_count: how often the fusion's bias is added at kept points in evaluation, 1 or 2.
        point_mask: "argmax", or "all": every point is kept in evaluation.
        s2d: dense outputs use sparse inputs at kept points only ("gated"), or at all points ("full").

    Raises:
        UseError: an unknown value.
    """

    kernel_batch_mix: bool = False
    index_rule: str = "trunc"
    tail_bias_count: int = 1
    point_mask: str = "argmax"
    s2d: str = "gated"

    def __post_init__(self):
        known = {
            "index_rule": ("trunc", "round"), "tail_bias_count": (1, 2), "point_mask": ("argmax", "all"),
            "s2d": ("gated", "full"), "kernel_batch_mix": (False, True),
        }  # fmt: skip
        for name, value in asdict(self).items():
            if value not in known[name]:
                raise UseError(f"{name} {value!r}: known are {', '.join(map(str, known[name]))}")


class PointMask(nn.Sequential):
    """The mask branch of points: a 1×1 and two point convolutions; logits (R, 2), index 1 keeps."""

    def __init__(self, channels: int, neighbours: int):
        narrow = max(1, channels // 4)
        super().__init__(
            BasicConv(channels, narrow),
            BasicConv(narrow, narrow, neighbours),
            BasicConv(narrow, 2, neighbours, norm=False, relu=False),
        )
        self.threshold = 0.5

    def logits(self, rows: Tensor, level: Level, mixed: int = 1) -> Tensor:
        """Rows (R, C) to logits (R, 2)."""
        return self[2](self[1](self[0](rows), level, mixed), level, mixed)

    def harden(self, logits: Tensor) -> Tensor:
        """Bool (R, 1): P(keep) above the threshold; at 0.5 the argmax."""
        drop, keep = logits.detach().split(1, 1)
        return keep > drop if self.threshold == 0.5 else torch.sigmoid(keep - drop) > self.threshold


class SparsePointBlock(MaskModule):
    """Point convolutions under one point mask, a 1×1 fusion over their outputs, and a shortcut (section 2).

    Args:
        inputs, outputs: channels.
        layers: point convolutions in sequence.
        neighbours: K.
    """

    mask_mode = "soft"  # see :func:`sparsemask.sparse.set_mask_mode`
    backend = "auto"  # see :func:`sparsemask.sparse.set_backend`

    def __init__(self, inputs: int, outputs: int, layers: int = 2, neighbours: int = 16):
        super().__init__()
        self.inputs, self.outputs, self.layers, self.neighbours = inputs, outputs, layers, neighbours
        self.ch_mask = nn.Parameter(torch.rand(layers, outputs, 2))
        self.body = nn.ModuleList(BasicConv(outputs if i else inputs, outputs, neighbours) for i in range(layers))
        self.pt_mask = PointMask(inputs, neighbours)
        self.tail = nn.Sequential(PointConv(layers * outputs, outputs, bias=True), RowNorm(outputs))
        if inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv1d(inputs, outputs, 1, bias=False), RowNorm(outputs))

    def mask_parameters(self) -> Iterator[nn.Parameter]:
        """What :func:`sparsemask.sparse.set_mask_mode` freezes."""
        yield self.ch_mask
        yield from self.pt_mask.parameters()

    @property
    def channel_logits(self) -> Tensor:
        """(L, C, 2), index 0 dense."""
        return self.ch_mask

    def channel_parameters(self) -> list[nn.Parameter]:
        """Of all layers, (L, C, 2)."""
        return [self.ch_mask]

    def branch(self) -> PointMask:
        """The mask branch."""
        return self.pt_mask

    def branch_end(self) -> tuple[Tensor, Tensor | None]:
        """The last point convolution, which has no bias."""
        return self.pt_mask[2].conv.conv_1x1.weight, None

    def costs(self, points: int) -> list[int]:
        """Multiply-adds of each layer with everything kept, as the paper counts: K·(C_in + 1)·C_out a point."""
        ins = [self.inputs] + [self.outputs] * (self.layers - 1)
        return [points * self.neighbours * (width + 1) * self.outputs for width in ins]

    def forward(
        self, rows: Tensor, level: Level, body_level: Level, tau: float, noise: bool, reading: Reading, batch: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Apply the block.

        Args:
            rows: features (R, C_in), one row a point.
            level: points and cells for the mask branch.
            body_level: those for the block's convolutions.
            tau: temperature of soft masks.
            noise: whether Gumbel noise is added to soft masks.
            reading: variants of the computation.
            batch: samples in the batch.

        Returns:
            Features (R, C_out), kept fractions (L,), kept fractions of hard masks (L,), hard mask bool (R, 1).
        """
        soft = self.training and self.mask_mode == "soft"
        mixed = batch if reading.kernel_batch_mix else 1
        spelled = self.training or mixed > 1 or dispatch.current(self.backend) == "reference"
        constant = None if spelled else self._constant(reading)
        if constant is not None:
            hard = torch.full((len(rows), 1), constant, device=rows.device)
            dense = torch.full_like(self.ch_mask[..., 0], True, dtype=torch.bool) if constant else self._dense()
            kept = kept_fraction(hard, dense)
            return self._skip(rows, body_level, hard, dense, reading), kept, kept, hard
        logits = self.pt_mask.logits(rows, level, mixed) if spelled else self._locate(rows, level)
        hard = self.pt_mask.harden(logits)
        hard_dense = self._dense()
        if not self.training and reading.point_mask == "all":
            hard = torch.ones_like(hard)
        mask, dense = hard, hard_dense
        if soft:
            mask = gumbel_mask(logits, tau, 1, noise)[:, 1:]
            dense = gumbel_mask(self.ch_mask, tau, 2, noise)[..., 0]
        if spelled:
            out = self._spelled(rows, level if self.training else body_level, mask, dense, reading, mixed)
        else:
            out = self._skip(rows, body_level, mask, dense, reading)
        kept = kept_fraction(mask, dense)
        return out, kept, kept_fraction(hard, hard_dense.detach()) if soft else kept, hard

    def _dense(self) -> Tensor:
        """Which channels are dense, bool (L, C); ties are."""
        return self.ch_mask[..., 0] >= self.ch_mask[..., 1]

    def _constant(self, reading: Reading) -> bool | None:
        """See :meth:`constant_mask`; the public code's second bias is of kept points alone."""
        return True if reading.point_mask == "all" else self.constant_mask(selects=reading.tail_bias_count > 1)

    def open(self, rows: Tensor, level: Level) -> Tensor:
        """The block without masks, in evaluation."""
        everything = torch.ones(len(rows), 1, dtype=torch.bool, device=rows.device)
        return self._skip(rows, level, everything, torch.ones_like(self.ch_mask[..., 0], dtype=torch.bool), Reading())

    def _locate(self, rows: Tensor, level: Level) -> Tensor:
        """The mask branch's logits in evaluation."""
        x = rows
        for layer in self.pt_mask:
            weight, table, bias = folded_of(layer)
            if table is None:
                x = row_linear(x, weight, bias)
            else:
                x = torch.ops.sparsemask.point_conv(
                    x, weight, table, bias, level.xyz, level.neighbours, level.cells, layer.relu
                )
        return x

    def _skip(self, rows: Tensor, level: Level, mask: Tensor, dense: Tensor, reading: Reading) -> Tensor:
        """The block in evaluation, skipping what the hard masks drop."""
        parts = [*self.body, *self.tail, *([self.shortcut[1]] if self.inputs != self.outputs else [])]
        sources = [t for part in parts for t in part.numbers()]
        sources += [self.shortcut[0].weight.detach()] if self.inputs != self.outputs else []
        count = reading.tail_bias_count
        folded = _folded.get(sources, lambda: _lasting(self.folded(count)), count)
        return sparse_block(rows, level, mask[:, 0], dense, folded, reading.s2d == "gated")

    def weights(self, reading: Reading) -> BlockWeights:
        """All weights in evaluation, as :mod:`sparsemask.ops.point_network` takes them."""
        constant = self._constant(reading)
        dense = torch.ones_like(self._dense()) if constant else self._dense()
        branch = [layer.folded() for layer in self.pt_mask]
        folded = self.folded(reading.tail_bias_count)
        return BlockWeights(folded, dense, constant, branch, self.pt_mask.threshold, reading.s2d == "gated")

    def open_weights(self) -> BlockWeights:
        """The same with everything kept."""
        return replace(self.weights(Reading()), dense=torch.ones_like(self._dense()), kept=True)

    def folded(self, bias_count: int = 1) -> Folded:
        """Copies of all weights with the batch norms (in evaluation) folded in."""
        layers = [layer.folded() for layer in self.body]
        conv, norm = self.tail
        scale, shift = norm.factors()
        bias = shift + scale * conv.conv_1x1.bias
        shortcut = None
        if self.inputs != self.outputs:
            by, shift = self.shortcut[1].factors()
            shortcut = self.shortcut[0].weight[:, :, 0] * by[:, None]
            bias = bias + shift
        return Folded(
            weights=[w for w, _, _ in layers],
            tables=[t for _, t, _ in layers],
            biases=[b for _, _, b in layers],
            tail=conv.weight * scale[:, None],
            tail_bias=bias,
            kept_bias=bias + (bias_count - 1) * scale * conv.conv_1x1.bias,
            shortcut=shortcut,
        )

    def _spelled(self, rows: Tensor, level: Level, mask: Tensor, dense: Tensor, reading: Reading, mixed: int) -> Tensor:
        """Everything computed and multiplied with soft or hard masks.

        With A and B what the dense and the sparse inputs give, M the point mask, o the output's dense share and
        g = o + (1 - o)·M: g·ReLU(norm(A + M/g·B)). Ungated, as in the public training code: g·ReLU(norm(A + B)).
        """
        mask, dense = mask.to(rows.dtype), dense.to(rows.dtype)
        outs, before, x = [], None, rows
        for layer, dense_share in zip(self.body, dense, strict=True):
            gate = dense_share + (1 - dense_share) * mask
            if before is None or reading.s2d == "full":
                z = layer.conv(x, level, mixed)
            else:
                ratio = mask / gate.clamp_min(torch.finfo(gate.dtype).eps)
                sparse = layer.conv(x * (1 - before), level, mixed, coordinates=False)
                z = torch.addcmul(layer.conv(x * before, level, mixed), ratio, sparse)
            x = gate * F.relu(layer.norm(z))
            outs.append(x)
            before = dense_share
        y = F.linear(torch.cat(outs, 1), self.tail[0].weight, self.tail[0].conv_1x1.bias)
        if not self.training and reading.tail_bias_count == 2:
            y = y + mask * self.tail[0].conv_1x1.bias
        y = self.tail[1](y)
        if self.inputs != self.outputs:
            rows = self.shortcut[1](F.linear(rows, self.shortcut[0].weight[:, :, 0]))
        return F.relu(y + rows)


def _lasting(folded: Folded) -> Folded:
    """Marked as derived, so that kernels need not compare them again."""
    for part in (*folded.weights, *folded.tables, *folded.biases, folded.tail, folded.tail_bias, folded.kept_bias):
        last(part)
    if folded.shortcut is not None:
        last(folded.shortcut)
    return folded
