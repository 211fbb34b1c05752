"""The backend `reference`: everything is convolved and the masks multiply. It skips nothing."""

from __future__ import annotations

import torch
from torch import Tensor

from sparsemask.sparse.functional import activate, along_channels, convolve, dense_part
from sparsemask.sparse.geometry import Geometry


class Reference:
    """See :mod:`sparsemask.sparse.backends`."""

    name = "reference"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """It always can."""
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
        """One layer: all inputs at kept locations, dense inputs to dense outputs at the others."""
        y = activate(convolve(x, weight, bias, geometry), activation)
        if not bool(out_dense.any()):
            return y.mul_(mask)
        kept = mask | along_channels(out_dense, x.ndim)
        if bool(in_dense.all()):
            return y if bool(out_dense.all()) else y.mul_(kept)
        y.mul_(kept)
        if geometry.groups > 1:
            part = activate(convolve(x * along_channels(in_dense, x.ndim), weight, bias, geometry), activation)
            dropped = ~mask & along_channels(out_dense, x.ndim)
            return torch.where(dropped, part, y)
        part = dense_part(x, weight, bias, in_dense, out_dense, geometry, activation)
        y[:, out_dense] = torch.where(mask, y[:, out_dense], part)
        return y


BACKEND = Reference()
