"""What the Triton backend prepares before a launch: row lists, sizes, the weights' order, tile sizes."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsemask.ops.activation import parse
from sparsemask.ops.geometry import Geometry
from sparsemask.ops.layout import to_rows

SMALL = 16
"""tl.dot takes no fewer input channels; below, products one by one are cheaper than padding."""
WIDEST = {torch.float32: 64, torch.float16: 128, torch.bfloat16: 128}
"""Columns of a product tile; float32 spills registers beyond (ptxas for sm_80 and sm_90)."""


class Rows(NamedTuple):
    """Where to compute: `rows` lists kept locations, then dropped ones; `kept` holds how many are kept."""

    rows: Tensor
    kept: Tensor
    mask: Tensor
    """uint8 per location."""

    @property
    def count(self) -> int:
        """How many rows there are."""
        return self.rows.shape[0]


class Shape(NamedTuple):
    """Sizes of input and output grids with leading ones, and the kernels' geometry tuple."""

    source: tuple[int, int, int]
    target: tuple[int, int, int]
    geometry: tuple

    @property
    def taps(self) -> int:
        """Locations of the kernel."""
        a, b, c = self.geometry[0]
        return a * b * c

    @property
    def pointwise(self) -> bool:
        """Whether an output location reads its own input location alone."""
        return self.geometry[5]


def kernels():
    """The module of kernels, imported when a kernel is first launched."""
    return importlib.import_module("sparsemask.backends.triton.kernels")


def _three(values: Sequence[int], fill: int) -> tuple[int, int, int]:
    return (fill,) * (3 - len(values)) + tuple(int(v) for v in values)


def shape_of(geometry: Geometry, spatial: Sequence[int], target: Sequence[int]) -> Shape:
    """A convolution's numbers in three dimensions, for maps of `spatial` and outputs of `target` sizes."""
    kernel, stride = _three(geometry.kernel, 1), _three(geometry.stride, 1)
    padding, dilation = _three(geometry.padding, 0), _three(geometry.dilation, 1)
    pointwise = kernel == stride == (1, 1, 1) and padding == (0, 0, 0) and tuple(spatial) == tuple(target)
    classed = geometry.transposed and max(stride) > 1
    form = (kernel, stride, padding, dilation, geometry.transposed, pointwise, classed)
    return Shape(_three(spatial, 1), _three(target, 1), form)


def _by_parity(n: int, shape: Shape, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Rows of the output, those first that meet the same taps of a strided transposed convolution."""
    grid = torch.arange(n * shape.target[0] * shape.target[1] * shape.target[2], dtype=dtype, device=device)
    grid = grid.view(n, *shape.target)
    sz, sy, sx = shape.geometry[1]
    classes = [(z, y, x) for z in range(sz) for y in range(sy) for x in range(sx)]
    return torch.cat([grid[:, z::sz, y::sy, x::sx].reshape(-1) for z, y, x in classes])


def row_lists(mask: Tensor, n: int, shape: Shape, largest: int) -> Rows:
    """Row lists of a mask (N, 1, *spatial), on its device."""
    flat = mask.expand(n, *mask.shape[1:]).reshape(-1)
    flat = flat if flat.dtype == torch.bool else flat != 0
    dtype = torch.int32 if largest < 2**31 else torch.int64
    order = _by_parity(n, shape, dtype, mask.device) if shape.geometry[6] else None
    counted = flat if order is None else flat[order]
    before = counted.cumsum(0, dtype=dtype)
    rows = torch.empty_like(before)
    count = rows.shape[0]
    block = 1024
    grid = (-(-count // block),)
    kernels().partition[grid](before, rows if order is None else order, rows, count, ORDERED=order is not None,
                            BLOCK=block, enable_fp_fusion=True)  # fmt: skip
    return Rows(rows, before[-1:], flat.view(torch.uint8))


def dense_first(dense: Tensor) -> tuple[Tensor, Tensor]:
    """Channels of each row of bool (G, C), dense ones first, and how many are dense."""
    return torch.argsort(dense.logical_not().to(torch.uint8), dim=1, stable=True), dense.sum(1)


def tile(channels: int, largest: int) -> int:
    """The power of two that holds the channels, from 16 to `largest`."""
    return max(16, min(largest, 1 << (channels - 1).bit_length()))


def as_rows(x: Tensor) -> Tensor:
    """(N, C, *spatial) -> (N·locations, C), a view where x is channels-last, also of a part of its channels."""
    rows = to_rows(x)
    return rows if rows.stride(1) == 1 else rows.contiguous()


def activation_of(name: str) -> dict:
    """The kernels' arguments for an activation; UseError for one that sparse convolutions do not know."""
    kind, slope = parse(name)
    return {"ACT": kind, "SLOPE": float(slope)}


def arithmetic(x: Tensor, largest: int) -> dict:
    """How kernels multiply and address."""
    precision = "ieee"
    if x.is_cuda and torch.version.hip is None and torch.cuda.get_device_capability(x.device) >= (8, 0):
        precision = "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    widen = kernels().INTERPRETED and x.dtype == torch.bfloat16
    return {"PRECISION": precision, "WIDEN": widen, "WIDE": largest >= 2**31, "enable_fp_fusion": True}


def blocks(n_in: int, n_out: int, dtype: torch.dtype, kept: bool) -> dict:
    """Tile sizes of a product with dropped or kept rows."""
    # Dropped rows have few dense channels: narrow tiles, of which those without any only write zeros.
    columns, depth = (WIDEST[dtype], 32 if dtype == torch.float32 else 64) if kept else (32, 32)
    if kernels().INTERPRETED:  # small tiles, so that small tests cross several
        columns, depth = 32, 16
    return {"BLOCK_N": tile(n_out, columns), "BLOCK_K": tile(n_in, depth)}


def tiles(rows: int, columns: int, groups: int = 1):
    """The grid of a launch: how many tiles cover rows and columns, by groups."""

    def grid(meta):
        return (-(-rows // meta["BLOCK_M"])) * (-(-columns // meta["BLOCK_N"])), groups

    return grid


def weight_of(weight: Tensor, transposed: bool, groups: int) -> tuple[Tensor, dict]:
    """Weights as the kernels read them, and the steps from group, tap, input and output channel to the next."""
    flat = weight.flatten(2)
    if transposed:  # (C_in, C_out / groups, taps)
        by = flat.view(groups, -1, *flat.shape[1:]).permute(0, 3, 1, 2)
    else:  # (C_out, C_in / groups, taps)
        by = flat.view(groups, -1, *flat.shape[1:]).permute(0, 3, 2, 1)
    if 1 not in by.stride()[2:]:
        by = by.contiguous()
    return by, dict(zip(("W_GROUP", "W_TAP", "W_IN", "W_OUT"), by.stride(), strict=True))


def on_device(x: Tensor):
    """The context in which kernels are launched on a tensor's device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def launch(
    x, by, steps, bias, out, *, kept, shape, how, lists, groups=1, in_counts=None, out_counts=None, in_list=None,
    out_list=None, all_in=False, masked_in=False, skip_empty=False,
) -> None:  # fmt: skip
    """One launch over the kept or the dropped rows; `x`, `out`: (rows, channels), perhaps columns of wider buffers."""
    _, _, n_in, n_out = by.shape
    nothing = lists.rows
    counts = nothing if in_counts is None else in_counts
    kernels().conv_rows[tiles(lists.count, n_out, groups)](
        x, by, bias if bias is not None else x, out, lists.rows, lists.kept, lists.mask, counts,
        nothing if out_counts is None else out_counts, nothing if in_list is None else in_list,
        nothing if out_list is None else out_list, lists.count, lists.count.bit_length(), *shape.source, *shape.target,
        x.stride(0), out.stride(0), **steps, C_IN=n_in, C_OUT=n_out, GEO=shape.geometry, KEPT=kept, ALL_IN=all_in,
        LISTED=in_list is not None, MASK_IN=masked_in, SKIP_EMPTY=skip_empty, BIASED=bias is not None, **how,
        **blocks(n_in, n_out, x.dtype, kept),
    )  # fmt: skip
