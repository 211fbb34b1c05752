"""The dense form: whole convolutions times masks. Skips no location; what every other backend must equal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsemask.sparse import activation as act
from sparsemask.sparse.dense_part import DensePart, dense_conv
from sparsemask.sparse.geometry import Geometry
from sparsemask.sparse.layout import from_rows


def along_channels(values: Tensor, like: Tensor) -> Tensor:
    """Values of channels (C,), shaped to multiply (N, C, *spatial)."""
    return values.view(1, -1, *[1] * (like.ndim - 2))


class Reference:
    """The backend `reference`; see :mod:`sparsemask.sparse.backends` for what its methods take."""

    name = "reference"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """None: torch's convolutions are everywhere."""
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
        """One sparse mask convolution: the whole one, and a narrow one of dense channels where some are not dense."""
        whole = act.apply_(activation, dense_conv(x, weight, bias, geometry))
        if bool(out_dense.all() & in_dense.all()) or bool(mask.all()):
            return whole
        if not bool(out_dense.any()):
            return whole.masked_fill_(~mask, 0)
        if bool(in_dense.all()):
            drop = ~(mask.movedim(1, -1) | out_dense).movedim(-1, 1)  # in channels-last order
            return whole.masked_fill_(drop, 0)
        part = DensePart(weight, bias, in_dense, out_dense, geometry).rows(x, whole.shape[2:], activation)
        return torch.where(mask, whole, from_rows(part, len(whole), whole.shape[2:]))

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
        """A block; its 1×1 runs plainly, since what was dropped is zero."""
        before = torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
        features = [x]
        for weight, mine in zip(weights, dense, strict=True):
            geometry = Geometry.of(x.ndim - 2, tuple(weight.shape[2:]))
            features.append(self.conv(features[-1], weight, None, mask, before, mine, geometry, activation))
            before = mine
        joined = torch.cat(features[1:], 1)
        return dense_conv(joined, collect_weight, collect_bias, Geometry.of(x.ndim - 2, 1))


BACKEND = Reference()
