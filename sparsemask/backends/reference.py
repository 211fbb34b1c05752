"""The dense form: whole convolutions times masks. Skips no location; what every other backend must equal."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsemask.backends import Backend
from sparsemask.ops import activation as act
from sparsemask.ops.block import BlockCall
from sparsemask.ops.conv import ConvCall, same_size
from sparsemask.ops.dense_part import DensePart, dense_conv
from sparsemask.ops.layout import from_rows


class Reference(Backend):
    """The backend `reference`, of torch's own operators."""

    name = "reference"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """None: torch's convolutions are everywhere."""
        return None

    def conv(self, call: ConvCall) -> Tensor:
        """The whole convolution, and a narrow one of dense channels where some are not dense."""
        mask, in_dense, out_dense = call.mask, call.in_dense, call.out_dense
        whole = act.apply_(call.activation, dense_conv(call.x, call.weight, call.bias, call.geometry))
        if bool(out_dense.all() & in_dense.all()) or bool(mask.all()):
            return whole
        if not bool(out_dense.any()):
            return whole.masked_fill_(~mask, 0)
        if bool(in_dense.all()):
            drop = ~(mask.movedim(1, -1) | out_dense).movedim(-1, 1)  # in channels-last order
            return whole.masked_fill_(drop, 0)
        narrow = DensePart(call.weight, call.bias, in_dense, out_dense, call.geometry)
        part = narrow.rows(call.x, whole.shape[2:], call.activation)
        return torch.where(mask, whole, from_rows(part, len(whole), whole.shape[2:]))

    def block(self, call: BlockCall) -> Tensor:
        """Its 1×1 runs plainly, since what was dropped is zero."""
        joined = torch.cat(call.outputs(self), 1)
        return dense_conv(joined, call.collect_weight, call.collect_bias, same_size(call.collect_weight))


BACKEND = Reference()
