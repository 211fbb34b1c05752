"""Sparse mask convolution by indirect products in C++: rows are read where they lie, nothing is gathered first.

Built on first use (:mod:`sparsemask.backends.native.build`) for every vector width of the processor family, chosen at
run time, and not trusted before small problems came out right on the processor at hand
(:mod:`sparsemask.backends.native.selfcheck`). Threads are torch's. float32, and on processors with matrix tiles (AMX)
or dot products (AVX512-BF16) bfloat16, as under `torch.autocast`: convolutions and modules by these, what is not a
convolution over all channels in float32. What comes in bfloat16 is computed in int8 (AVX512-VNNI) where the caller says
so (:func:`sparsemask.ops.dispatch.int8`). Other types are computed by other backends.
"""

from __future__ import annotations

import dataclasses
import operator
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from sparsemask.backends import Backend
from sparsemask.backends.native import (
    bfloat16,
    block,
    build,
    concat_conv,
    conv,
    inverted_residual,
    kept,
    library,
    masked_network,
    multiscale_sum,
    point_block,
    point_network,
    points,
    predict_mask,
    stereo,
    tiles,
)
from sparsemask.ops import dispatch
from sparsemask.ops.block import BlockCall
from sparsemask.ops.block_with_channel_attention import AttendedBlockCall
from sparsemask.ops.concat_conv import ConcatConvCall
from sparsemask.ops.conv import ConvCall
from sparsemask.ops.inverted_residual import InvertedResidualCall
from sparsemask.ops.kept_conv import KeptConvCall
from sparsemask.ops.masked_network import MaskedNetworkWeights
from sparsemask.ops.merge_kept import MergeKeptCall
from sparsemask.ops.multiscale_sum import MultiscaleSumCall
from sparsemask.ops.point_block import Folded
from sparsemask.ops.point_conv import Level
from sparsemask.ops.point_network import PointNetworkWeights, PreparedPointNetwork
from sparsemask.ops.predict_mask import WIDEST, PredictMaskCall

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["BACKEND", "Native"]


@lru_cache(maxsize=1)
def _absent() -> str | None:
    from sparsemask.backends.native import selfcheck

    try:
        library.lib()
    except (build.NoCompiler, OSError) as error:
        return str(error)
    wrong = selfcheck.trust()
    if wrong is not None:
        reason = f"the kernels built here compute wrong results on this processor ({wrong}); please report it"
        say_absent(reason)
        return reason
    return None


@lru_cache(maxsize=1)
def say_absent(reason: str) -> None:
    """Say, once, that PyTorch computes in the kernels' place, and why."""
    print(f"sparse kernels in C++ are not to be had, pure PyTorch computes: {reason}", file=sys.stderr, flush=True)


class Native(Backend):
    """The backend `native`."""

    name = "native"

    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Why it cannot compute on this device in this type; None where it can."""
        if torch.device(device).type != "cpu":
            return "native kernels are for CPUs"
        if dtype not in (torch.float32, torch.bfloat16):
            return f"native kernels compute in float32, not {str(dtype).removeprefix('torch.')}"
        absent = _absent()
        if absent is None and dtype == torch.bfloat16 and tiles.in_use() == "none":
            return "native kernels compute in bfloat16 by AMX, AVX512-BF16, of which this processor has neither"
        return absent

    def conv(self, call: ConvCall) -> Tensor:
        """Kept rows in full, dropped rows from dense to dense channels."""
        return _lone(call, conv.conv, bfloat16.conv)

    def whole_conv(self, call: ConvCall) -> Tensor:
        """The same, all rows by torch's convolution, dropped ones set afterwards: the backend `dense`."""
        if call.x.dtype == torch.float32:
            return conv.whole_conv(call)
        return (
            bfloat16.whole_conv(call)
            if call.geometry.groups == 1
            else conv.whole_conv(_wide(call, call.x)).to(call.x.dtype)
        )

    def block(self, call: BlockCall) -> Tensor:
        """A module in rows."""
        if call.x.dtype == torch.float32:
            return block.block(call)
        return bfloat16.block(call, _packed_kind(*call.weights, call.collect_weight))

    def attended_block(self, call: AttendedBlockCall) -> Tensor:
        """Sample by sample: attention is a factor on the fusion's weights."""
        if call.block.x.dtype == torch.float32:
            return block.attended_block(call)
        return bfloat16.attended_block(call, _packed_kind(*call.block.weights, call.block.collect_weight))

    def inverted_residual(self, call: InvertedResidualCall) -> Tensor:
        """In one call, band by band; in float32."""
        return inverted_residual.inverted_residual(_wide(call, call.x)).to(call.x.dtype)

    in_kept_rows = True

    def kept_conv(self, call: KeptConvCall) -> Tensor:
        """Kept rows alone, which lie side by side."""
        return _lone(call, kept.conv, kept.packed_conv)

    def merge_kept(self, call: MergeKeptCall) -> Tensor:
        """The convolution at dropped rows alone; in float32."""
        if call.groups not in (1, call.x.shape[1]) or call.x.dtype != torch.float32:
            return super().merge_kept(call)
        return kept.merge(call)

    def locate(self, call: PredictMaskCall) -> Tensor:
        """In one call, where the branch is narrow enough; in float32."""
        call = _wide(call, call.x)
        around = call.first.shape[-1] == 3
        if len(call.first) > WIDEST or not call.x.numel() or around and call.apply_relu6:
            return super().locate(call)
        return predict_mask.locate(call)

    def fuse_scales(self, call: MultiscaleSumCall) -> Tensor:
        """In one call, where there is room for all features; in float32."""
        if len(call.xs) > multiscale_sum.MOST:
            return super().fuse_scales(call)
        return multiscale_sum.fuse_scales(_wide(call, call.xs[0])).to(call.xs[0].dtype)

    def beats_dense(self, weight: Tensor) -> bool:
        """By squares, of many channels; in float32."""
        return tuple(weight.shape[-2:]) == (3, 3) and min(weight.shape[:2]) >= MANY and weight.dtype == torch.float32

    def joined_conv(self, call: ConcatConvCall) -> Tensor:
        """Each feature is read where it lies."""
        return (concat_conv if call.xs[0].dtype == torch.float32 else bfloat16).joined_conv(call)

    def correlation_volume(self, left: Tensor, right: Tensor, levels: int, groups: int) -> Tensor:
        """One pass over rows; in float32."""
        return stereo.correlation(left.float(), right.float(), levels, groups).to(left.dtype)

    # On points: in float32.

    def point_cells(self, xyz: Tensor, neighbours: Tensor, radius: float, rule: str, size: int) -> Tensor:
        return points.bins(xyz.float().contiguous(), neighbours.contiguous(), radius, size, rule == "round")

    def point_means(self, rows: Tensor, neighbours: Tensor) -> Tensor:
        return points.means(rows.float().contiguous(), neighbours.contiguous()).to(rows.dtype)

    def point_aggregate(
        self, g: Tensor, xyz: Tensor, rel: Tensor, table: Tensor, neighbours: Tensor, cells: Tensor
    ) -> Tensor:
        out, (xyz, rel, table) = library.empty(*g.shape), (one.float() for one in (xyz, rel, table))
        points.aggregate(g.float().contiguous(), xyz.contiguous(), rel, table, neighbours, cells, out)
        return out.to(g.dtype)

    def point_gradients(
        self, grad: Tensor, g: Tensor, xyz: Tensor, rel: Tensor, table: Tensor, level: Level
    ) -> tuple[Tensor, Tensor]:
        """By lists of who reads a point, which the level keeps."""
        if level.readers is None:
            level.readers = points.readers(level.neighbours, level.cells)
        given = [one.float() for one in (grad, g, xyz, rel, table)]
        to_g, to_table = points.gradients(*given, level.neighbours, level.cells, level.readers)
        return to_g.to(g.dtype), to_table.to(table.dtype)

    def point_conv(
        self, rows: Tensor, weight: Tensor, table: Tensor, bias: Tensor, xyz: Tensor, neighbours: Tensor,
        cells: Tensor, relu: bool,
    ) -> Tensor:  # fmt: skip
        given = [one.float() for one in (rows, weight, table, bias, xyz)]
        return point_block.conv(*given, neighbours, cells, relu).to(rows.dtype)

    def point_block(
        self, rows: Tensor, level: Level, mask: Tensor, dense: Tensor, folded: Folded, gated: bool
    ) -> Tensor:
        return point_block.block(rows.float(), level, mask, dense, folded, gated).to(rows.dtype)

    def point_network(self, weights: PointNetworkWeights) -> PreparedPointNetwork | None:
        """In one call."""
        return point_network.PointNetwork(weights)

    def masked_network(self, weights: MaskedNetworkWeights) -> Callable[[Tensor], Tensor] | None:
        """Its blocks in one call, its stages in another."""
        return masked_network.prepared(weights)

    def point_linear(
        self, rows: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, add_map: Tensor | None, relu: bool
    ) -> Tensor:
        weight, bias, wide = weight.float(), bias.float() if bias is not None else None, rows.float()
        return point_block.linear(wide, weight, bias, add.float() if add is not None else None, add_map, relu).to(
            rows.dtype
        )

    def add_relu(self, a: Tensor, b: Tensor, mask: Tensor | None, dense: Tensor | None) -> Tensor:
        """In one pass, where both lie in rows, in float32."""
        if a.dtype != torch.float32 or not all(one.movedim(1, -1).is_contiguous() for one in (a, b)):
            return super().add_relu(a, b, mask, dense)
        rows, other = (one.movedim(1, -1).reshape(-1, one.shape[1]) for one in (a, b))
        if mask is None:
            library.add_relu(rows, other)
        else:
            library.add_relu(rows, other, mask.reshape(-1), int(dense.sum()))
        return a


MANY = 32  # channels, from which on a convolution of all locations by squares is faster than torch's
_PAYING = 64  # channels, from which on a layer by itself gains more in int8 than the way there takes


_Lone = TypeVar("_Lone", ConvCall, KeptConvCall)


def _lone(
    call: _Lone, plain: Callable[[_Lone], Tensor], packed: Callable[[_Lone, torch.dtype], Tensor]
) -> Tensor:  # fmt: skip
    """A layer by itself, by the products that its type and groups allow."""
    if call.x.dtype == torch.float32:
        return plain(call)
    if call.geometry.groups == 1:
        return packed(call, _packed_kind(call.weight) if call.x.shape[1] >= _PAYING else tiles.BFLOAT16)
    return plain(_wide(call, call.x)).to(call.x.dtype)


def _packed_kind(*weights: Tensor) -> torch.dtype:
    """Of products with these weights (C_out, C_in, ...), or transposed, where features come in bfloat16."""
    depth = max(max(one.shape[:2]) * one[0, 0].numel() for one in weights)
    fits = dispatch.in_int8() and depth <= tiles.DEEPEST and tiles.in_use(tiles.INT8) != "none"
    return tiles.INT8 if fits else tiles.BFLOAT16


_Given = TypeVar("_Given", bound="DataclassInstance")


def _wide(call: _Given, x: Tensor) -> _Given:
    """The call of features x with all that is in bfloat16 in float32."""
    if x.dtype == torch.float32:
        return call
    names = [field.name for field in dataclasses.fields(call)]
    values = map(_widened, operator.attrgetter(*names)(call))
    return dataclasses.replace(call, **dict(zip(names, values, strict=True)))


def _widened(value: object) -> object:
    if isinstance(value, list):
        return [_widened(one) for one in value]
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


BACKEND = Native()
