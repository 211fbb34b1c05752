"""The backend `gather`: kept rows of channels-last features gathered, one matrix product a layer. Pure PyTorch.

A row is a location's channels. Kept rows are computed from all channels to all, dropped rows from dense to dense ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sparsemask.sparse.derived import Derived
from sparsemask.sparse.functional import activate, convolve, dense_part
from sparsemask.sparse.geometry import Geometry
from sparsemask.sparse.reference import BACKEND as REFERENCE

_derived = Derived()


class Gather:
    """See :mod:`sparsemask.sparse.backends`."""

    name = "gather"

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
        """One layer. Grouped convolutions have no product to save and go by the reference."""
        if geometry.groups > 1 or geometry.transposed and max(geometry.stride) > 1:
            return REFERENCE.conv(x, weight, bias, mask, in_dense, out_dense, geometry, activation)
        outputs = geometry.output_size(x.shape[2:])
        batch, channels, dims = x.shape[0], len(out_dense), geometry.dims
        place = mask.reshape(-1).nonzero().squeeze(1)  # on a GPU the one wait for the device: how many are kept
        some_dense, all_dense = bool(out_dense.any()), bool(in_dense.all())
        if not some_dense:
            rows = x.new_zeros(batch * mask[0].numel(), channels)
        elif all_dense and bool(out_dense.all()):
            return activate(convolve(x, weight, bias, geometry), activation)
        else:
            rows = x.new_zeros(batch * mask[0].numel(), channels)
            part = dense_part(x, weight, bias, in_dense, out_dense, geometry, activation)
            rows[:, out_dense] = part.movedim(1, -1).flatten(0, -2)
        if len(place):
            matrix = _derived.get([weight], lambda: _matrix(weight, geometry), geometry)
            rows[place] = activate(_product(_columns(x, place, geometry, outputs), matrix, bias), activation)
        out = rows.view(batch, *outputs, channels).movedim(-1, 1)
        last = dims > 1 and x.is_contiguous(memory_format=torch.channels_last if dims == 2 else torch.channels_last_3d)
        return out if last else out.contiguous()


def _matrix(weight: Tensor, geometry: Geometry) -> Tensor:
    """(taps · C_in, C_out); a transposed kernel of stride 1 is the mirrored one."""
    taps = weight.detach().flatten(2)
    taps = taps.flip(2).permute(2, 0, 1) if geometry.transposed else taps.permute(2, 1, 0)
    return taps.reshape(-1, taps.shape[2]).contiguous()


def _product(columns: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return columns @ matrix if bias is None else torch.addmm(bias, columns, matrix)


def _columns(x: Tensor, place: Tensor, geometry: Geometry, outputs: tuple[int, ...]) -> Tensor:
    """(kept, taps · C_in): what every kept output reads, padding as zeros."""
    dims, channels = geometry.dims, x.shape[1]
    rows = x.movedim(1, -1)
    at = torch.stack(torch.unravel_index(place, (x.shape[0], *outputs)))  # (1 + dims, kept)
    taps = torch.stack(
        torch.meshgrid(*(torch.arange(k, device=x.device) for k in geometry.kernel), indexing="ij")
    ).reshape(dims, -1)
    sizes, strides, batch_stride = x.shape[2:], [], 1
    for size in reversed(sizes):
        strides.insert(0, batch_stride)
        batch_stride *= size
    index = (at[0] * batch_stride)[:, None].expand(-1, taps.shape[1])
    inside = torch.ones_like(index, dtype=torch.bool)
    for d in range(dims):
        pad, step = geometry.padding[d], geometry.stride[d]
        if geometry.transposed:  # mirrored, at stride 1
            pad, step = geometry.dilation[d] * (geometry.kernel[d] - 1) - pad, 1
        here = (at[1 + d] * step - pad)[:, None] + (taps[d] * geometry.dilation[d])[None]
        inside &= (here >= 0) & (here < sizes[d])
        index = index + here * strides[d]
    flat = rows.reshape(-1, channels)
    if bool(inside.all()):
        return flat[index].view(len(place), -1)
    found = flat[torch.where(inside, index, 0)]
    return found.mul_(inside[..., None]).view(len(place), -1)


BACKEND = Gather()
