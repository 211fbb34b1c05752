"""The dense form: whole convolutions times masks. Skips nothing; what every other backend must equal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.sparse import activation as act
from sparsemask.sparse.geometry import Geometry

_PLAIN = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def dense_conv(x: Tensor, weight: Tensor, bias: Tensor | None, g: Geometry) -> Tensor:
    """torch's own convolution of a geometry."""
    if g.transposed:
        run = _TRANSPOSED[g.dims - 1]
        return run(x, weight, bias, g.stride, g.padding, g.output_padding, g.groups, g.dilation)
    return _PLAIN[g.dims - 1](x, weight, bias, g.stride, g.padding, g.dilation, g.groups)


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
        """One sparse mask convolution: one dense convolution, and a second where dense inputs are some but not all."""
        whole = act.apply_(activation, dense_conv(x, weight, bias, geometry))
        n_in, n_out = int(in_dense.sum()), int(out_dense.sum())
        if n_out == 0 or (n_in == len(in_dense)):
            if n_out < len(out_dense):
                whole.masked_fill_(~(mask | along_channels(out_dense, whole)), 0)
            return whole
        part = dense_conv(x.masked_fill(~along_channels(in_dense, x), 0), weight, bias, geometry)
        part = act.apply_(activation, part)
        if n_out < len(out_dense):
            part.masked_fill_(~along_channels(out_dense, part), 0)
        return torch.where(mask, whole, part)

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
