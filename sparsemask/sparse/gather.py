"""Sparse mask convolution in pure PyTorch: kept rows in full by gathering, dense channels everywhere by a narrow layer.

Kept locations take all channels from all channels, in one matrix product of gathered channels-last rows. Dropped ones
take dense channels from dense channels: by an ordinary convolution with those channels alone over everything, or, where
little is dropped, by gathering too. Works on every device and in every floating-point type that torch computes in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsemask.sparse import activation as act
from sparsemask.sparse.derived import Derived
from sparsemask.sparse.gather_products import Product, by_taps
from sparsemask.sparse.gather_reads import reads, taps_of_classes
from sparsemask.sparse.geometry import Geometry
from sparsemask.sparse.layout import from_rows, last_weight, to_rows
from sparsemask.sparse.reference import dense_conv

FEW = 0.3  # share of dropped locations below which they are gathered
_derived = Derived()


class Gather:
    """The backend `gather`; see :mod:`sparsemask.sparse.backends` for what its methods take."""

    name = "gather"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """None: it is made of torch's own operators."""
        return None

    def conv(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        mask: Tensor,
        in_dense: Tensor,
        out_dense: Tensor,
        geometry: Geometry,
        activation: str,
    ) -> Tensor:
        """One sparse mask convolution."""
        kept, total = listed(mask), mask.numel()
        sources = [weight, in_dense, out_dense] + ([bias] if bias is not None else [])
        split = _derived.get(sources, lambda: Split(weight, bias, in_dense, out_dense, geometry), geometry)
        if len(kept) == total or split.all_dense:
            return act.apply_(activation, dense_conv(x, weight, bias, geometry))
        samples, inner, spatial = x.shape[0], x.shape[2:], geometry.output_size(x.shape[2:])
        rows = to_rows(x)
        if not split.outs:
            out = rows.new_zeros(total, len(out_dense))
        elif total - len(kept) < FEW * total:
            out = rows.new_empty(total, len(out_dense))
            dropped = listed(~mask)
            split.dropping.scatter(out, dropped, rows, [*reads(dropped, samples, inner, geometry)], activation)
        else:
            out = split.everywhere(x, rows, spatial, activation)
        split.full.scatter(out, kept, rows, [*reads(kept, samples, inner, geometry)], activation)
        return from_rows(out, samples, spatial)

    def block(
        self,
        x: Tensor,
        mask: Tensor,
        weights: Sequence[Tensor],
        dense: Tensor,
        collect_weight: Tensor,
        collect_bias: Tensor | None,
        activation: str,
    ) -> Tensor:
        """A module's layers and their fusion."""
        from sparsemask.sparse.gather_block import block

        return block(x, mask, weights, dense, collect_weight, collect_bias, activation)


def listed(mask: Tensor) -> Tensor:
    """Numbers of the true places of a mask, int64, batch first."""
    return mask.reshape(-1).nonzero().squeeze(1)


class Split:
    """The weights of a layer by what meets what: everything, and dense to dense."""

    def __init__(self, weight: Tensor, bias: Tensor | None, in_dense: Tensor, out_dense: Tensor, geometry: Geometry):
        g = self.geometry = geometry
        self.ins, self.outs = int(in_dense.sum()), int(out_dense.sum())
        self.n_in, self.n_out = len(in_dense), len(out_dense)
        self.all_dense = self.ins == self.n_in and self.outs == self.n_out
        classes = taps_of_classes(g)
        taps = by_taps(weight, g)
        self.full = Product(taps, bias, g.groups, classes)
        if not self.outs or self.all_dense:
            return
        from_dense = in_dense.view(g.groups, -1).repeat_interleave(self.n_out // g.groups, 0).T
        self.dropping = Product(
            taps * from_dense * out_dense, bias * out_dense if bias is not None else None, g.groups, classes
        )
        self._out_places, self._in_places = listed(out_dense), listed(in_dense)
        if g.groups > 1:  # dense channels differ in number from group to group
            self._weight = _from_taps(taps * from_dense * out_dense, weight, g)
            self._bias = self.dropping.bias
        else:
            outs, ins = (1, 0) if g.transposed else (0, 1)
            narrow = weight.index_select(outs, self._out_places).index_select(ins, self._in_places)
            self._weight, self._bias = last_weight(narrow), bias[out_dense] if bias is not None else None

    def everywhere(self, x: Tensor, rows: Tensor, spatial: Sequence[int], activation: str) -> Tensor:
        """Rows (N·locations, C_out) of dense channels from dense channels, zeros in the sparse ones."""
        narrow = self.narrow(x, rows, spatial, activation)
        if narrow.shape[1] == self.n_out:
            return narrow
        out = narrow.new_zeros(len(narrow), self.n_out)
        return out.scatter_(1, self._out_places.expand(len(narrow), -1), narrow)

    def narrow(self, x: Tensor, rows: Tensor, spatial: Sequence[int], activation: str) -> Tensor:
        """As :meth:`everywhere`, the dense columns only (all columns of grouped convolutions)."""
        if self.geometry.groups == 1 and self.ins < self.n_in:
            if self.ins == 0:
                count = x.shape[0] * torch.Size(spatial).numel()
                out = rows.new_zeros(count, self.outs)
                return out if self._bias is None else act.apply_(activation, out.add_(self._bias))
            x = from_rows(rows.index_select(1, self._in_places), x.shape[0], x.shape[2:])
        return to_rows(act.apply_(activation, dense_conv(x, self._weight, self._bias, self.geometry)))


def _from_taps(taps: Tensor, like: Tensor, g: Geometry) -> Tensor:
    """Back from (taps, C_in / groups, C_out) to torch's order."""
    if g.transposed:
        return taps.unflatten(2, (g.groups, -1)).permute(2, 1, 3, 0).flatten(0, 1).reshape(like.shape)
    return taps.permute(2, 1, 0).reshape(like.shape)


BACKEND = Gather()
