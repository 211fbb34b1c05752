"""Sparse mask convolution in pure PyTorch: kept rows in full by gathering, dense channels everywhere by a narrow layer.

Kept locations take all channels from all channels, in one matrix product of gathered channels-last rows. Dropped ones
take dense channels from dense channels: by an ordinary convolution with those channels alone over everything, or, where
little is dropped, by gathering too. Works on every device and in every floating-point type that torch computes in.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsemask.backends import Backend
from sparsemask.backends.gather import block
from sparsemask.backends.gather.products import Product, by_taps
from sparsemask.backends.gather.reads import reads, taps_of_classes
from sparsemask.ops import activation as act
from sparsemask.ops.block import BlockCall
from sparsemask.ops.conv import ConvCall
from sparsemask.ops.dense_part import DensePart, dense_conv, dense_weight
from sparsemask.ops.geometry import Geometry
from sparsemask.ops.layout import from_rows, to_rows
from sparsemask.ops.weight_cache import Derived

FEW = 0.3  # share of dropped locations below which they are gathered
_derived = Derived()


class Gather(Backend):
    """The backend `gather`."""

    name = "gather"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """None: it is made of torch's own operators."""
        return None

    def conv(self, call: ConvCall) -> Tensor:
        """Kept rows in full, dropped ones from dense to dense channels."""
        x, weight, bias, mask, activation = call.x, call.weight, call.bias, call.mask, call.activation
        in_dense, out_dense, geometry = call.in_dense, call.out_dense, call.geometry
        kept, total = listed(mask), mask.numel()
        sources = [weight, in_dense, out_dense] + ([bias] if bias is not None else [])
        split = _derived.get(sources, lambda: Split(weight, bias, in_dense, out_dense, geometry), geometry)
        if len(kept) == total or split.all_dense:
            return act.apply_(activation, dense_conv(x, weight, bias, geometry))
        samples, inner, spatial = x.shape[0], x.shape[2:], geometry.output_size(x.shape[2:])
        rows = to_rows(x)
        if not split.any_dense:
            out = rows.new_zeros(total, len(out_dense))
        elif total - len(kept) < FEW * total:
            out = rows.new_empty(total, len(out_dense))
            dropped = listed(~mask)
            split.dropping.scatter(out, dropped, rows, [*reads(dropped, samples, inner, geometry)], activation)
        else:
            out = split.everywhere.rows(x, spatial, activation)
        split.full.scatter(out, kept, rows, [*reads(kept, samples, inner, geometry)], activation)
        return from_rows(out, samples, spatial)

    def block(self, call: BlockCall) -> Tensor:
        """A module in rows."""
        return block.block(call)


def listed(mask: Tensor) -> Tensor:
    """Numbers of the true locations of a mask, int64, batch first."""
    return mask.reshape(-1).nonzero().squeeze(1)


class Split:
    """The weights of a layer by what meets what: everything, and dense to dense."""

    def __init__(self, weight: Tensor, bias: Tensor | None, in_dense: Tensor, out_dense: Tensor, geometry: Geometry):
        classes, groups = taps_of_classes(geometry), geometry.groups
        self.full = Product(by_taps(weight, geometry), bias, groups, classes)
        self.all_dense = bool(in_dense.all() & out_dense.all())
        self.any_dense = bool(out_dense.any())
        if self.any_dense and not self.all_dense:
            self.everywhere = DensePart(weight, bias, in_dense, out_dense, geometry)
            masked = dense_weight(weight, in_dense, out_dense, geometry)
            few = by_taps(masked, geometry), bias * out_dense if bias is not None else None
            self.dropping = Product(*few, groups, classes)


BACKEND = Gather()
