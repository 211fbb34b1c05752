"""Convolutions at listed outputs only: rows are gathered piece by piece, each piece meets the weights in one product.

A piece is small enough to stay in the cache between the two, which makes gathering nearly free: gathered at once, the
rows of a 3×3 layer are nine times the layer's input.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from sparsemask.backends.gather.reads import Reads
from sparsemask.ops import activation as act
from sparsemask.ops.geometry import Geometry

_PIECE = {"cpu": 1 << 20}  # bytes gathered at a time; elsewhere launches cost more than caches save
_PIECE_ELSEWHERE = 1 << 28


def pieces(rows: Tensor, reads: Reads) -> Iterator[tuple[int, int, Tensor]]:
    """(begin, end, gathered (end − begin, T, C)) over the outputs of `reads`; the last is overwritten by the next.

    rows (R, C) contiguous; taps that fall outside are zero.
    """
    (n, taps), channels = reads.rows.shape, rows.shape[1]
    size = max(1, taps * channels) * rows.element_size()
    step = max(16, _PIECE.get(rows.device.type, _PIECE_ELSEWHERE) // size)
    listed, outside = reads.rows.view(-1), reads.outside
    begins = range(0, n, step)
    cuts = [0] * (len(begins) + 1)
    if len(outside):
        edges = torch.tensor([*begins, n], device=rows.device) * taps
        cuts = torch.searchsorted(outside, edges).tolist()
    buffer = rows.new_empty(min(step, n) * taps, channels)
    for number, begin in enumerate(begins):
        end = min(begin + step, n)
        part = buffer[: (end - begin) * taps]
        torch.index_select(rows, 0, listed[begin * taps : end * taps], out=part)
        if cuts[number + 1] > cuts[number]:
            part.index_fill_(0, outside[cuts[number] : cuts[number + 1]] - begin * taps, 0)
        yield begin, end, part.view(end - begin, taps, channels)


def by_taps(weight: Tensor, geometry: Geometry) -> Tensor:
    """torch's weights as (taps, C_in / groups, C_out)."""
    flat = weight.flatten(2)
    if geometry.transposed:  # (C_in, C_out / groups, ...)
        return flat.unflatten(0, (geometry.groups, -1)).permute(3, 1, 0, 2).flatten(2)
    return flat.permute(2, 1, 0)


class Product:
    """The weights of a convolution, ready to meet gathered rows."""

    def __init__(self, taps: Tensor, bias: Tensor | None, groups: int, classes: Sequence[tuple[int, ...]]):
        """taps: (T, C_in / groups, C_out); classes: the taps that outputs of each class read."""
        self.bias, self.groups = bias.clone() if bias is not None else None, groups
        self.depthwise = groups > 1 and taps.shape[1] == 1 and groups == taps.shape[2]
        self._weights = {}
        for one in classes:
            chosen = taps[list(one)]  # (T', C_in / groups, C_out)
            if self.depthwise:
                self._weights[one] = chosen[:, 0].contiguous()
            elif groups > 1:
                each = chosen.unflatten(2, (groups, -1)).permute(2, 0, 1, 3)
                self._weights[one] = each.flatten(1, 2).contiguous()  # (groups, T'·C_in/groups, C_out/groups)
            else:
                self._weights[one] = chosen.flatten(0, 1).contiguous()

    def into(self, out: Tensor, gathered: Tensor, taps: tuple[int, ...], activation: str) -> Tensor:
        """Outputs (n, C_out) of gathered rows (n, T, C_in), written to `out`; returns it."""
        weight = self._weights[taps]
        if self.depthwise:
            torch.sum(gathered.mul_(weight), 1, out=out)
        elif self.groups > 1:
            each = gathered.unflatten(2, (self.groups, -1)).permute(2, 0, 1, 3).flatten(2)
            out.view(len(gathered), self.groups, -1).copy_(torch.bmm(each, weight).transpose(0, 1))
        elif self.bias is not None:
            return act.apply_(activation, torch.addmm(self.bias, gathered.flatten(1), weight, out=out))
        else:
            torch.mm(gathered.flatten(1), weight, out=out)
        return act.apply_(activation, out if self.bias is None else out.add_(self.bias))

    def scatter(self, out: Tensor, listed: Tensor, rows: Tensor, reads: Sequence[Reads], activation: str) -> None:
        """The outputs `listed`, which read `reads` of `rows`, into their rows of out (R, C_out)."""
        for one in reads:
            at = listed if one.at is None else listed.index_select(0, one.at)
            values = None
            for begin, end, gathered in pieces(rows, one):
                values = rows.new_empty(end - begin, out.shape[1]) if values is None else values[: end - begin]
                out.index_copy_(0, at[begin:end], self.into(values, gathered, one.taps, activation))
