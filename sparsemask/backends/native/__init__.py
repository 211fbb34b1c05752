"""Sparse mask convolution by indirect products in C++: rows are read where they lie, nothing is gathered first.

Built on first use (:mod:`sparsemask.backends.native.build`) for every vector width of the processor family, chosen at
run time, and not trusted before small problems came out right on the processor at hand
(:mod:`sparsemask.backends.native.selfcheck`). Threads are torch's. float32; other types are computed by other backends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor

from sparsemask.backends import Backend
from sparsemask.backends.native import (
    block,
    build,
    concat_conv,
    conv,
    inverted_residual,
    library,
    masked_network,
    multiscale_sum,
    point_block,
    point_network,
    points,
    predict_mask,
    stereo,
)
from sparsemask.ops.block import BlockCall
from sparsemask.ops.block_with_channel_attention import AttendedBlockCall
from sparsemask.ops.concat_conv import ConcatConvCall
from sparsemask.ops.conv import ConvCall
from sparsemask.ops.inverted_residual import InvertedResidualCall
from sparsemask.ops.masked_network import MaskedNetworkWeights
from sparsemask.ops.multiscale_sum import MultiscaleSumCall
from sparsemask.ops.point_block import Folded
from sparsemask.ops.point_conv import Level
from sparsemask.ops.point_network import PointNetworkWeights, PreparedPointNetwork
from sparsemask.ops.predict_mask import PredictMaskCall

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
        if dtype != torch.float32:
            return f"native kernels compute in float32, not {str(dtype).removeprefix('torch.')}"
        return _absent()

    def conv(self, call: ConvCall) -> Tensor:
        """Kept rows in full, dropped rows from dense to dense channels."""
        return conv.conv(call)

    def block(self, call: BlockCall) -> Tensor:
        """A module in rows."""
        return block.block(call)

    def attended_block(self, call: AttendedBlockCall) -> Tensor:
        """Sample by sample: attention is a factor on the fusion's weights."""
        return block.attended_block(call)

    def inverted_residual(self, call: InvertedResidualCall) -> Tensor:
        """In one call, band by band."""
        return inverted_residual.inverted_residual(call)

    def locate(self, call: PredictMaskCall) -> Tensor:
        """In one call, where the branch is narrow enough."""
        if len(call.first) > predict_mask.WIDEST or not call.x.numel():
            return super().locate(call)
        return predict_mask.locate(call)

    def fuse_scales(self, call: MultiscaleSumCall) -> Tensor:
        """In one call, where there is room for all features."""
        return super().fuse_scales(call) if len(call.xs) > multiscale_sum.MOST else multiscale_sum.fuse_scales(call)

    def joined_conv(self, call: ConcatConvCall) -> Tensor:
        """Each feature is read where it lies."""
        return concat_conv.joined_conv(call)

    def correlation_volume(self, left: Tensor, right: Tensor, levels: int, groups: int) -> Tensor:
        """One pass over rows."""
        return stereo.correlation(left, right, levels, groups)

    def point_cells(self, xyz: Tensor, neighbours: Tensor, radius: float, rule: str, size: int) -> Tensor:
        return points.bins(xyz.contiguous(), neighbours.contiguous(), radius, size, rule == "round")

    def point_means(self, rows: Tensor, neighbours: Tensor) -> Tensor:
        return points.means(rows.contiguous(), neighbours.contiguous())

    def point_aggregate(
        self, g: Tensor, xyz: Tensor, rel: Tensor, table: Tensor, neighbours: Tensor, cells: Tensor
    ) -> Tensor:
        out = library.empty(*g.shape)
        points.aggregate(g.contiguous(), xyz.contiguous(), rel, table, neighbours, cells, out)
        return out

    def point_gradients(
        self, grad: Tensor, g: Tensor, xyz: Tensor, rel: Tensor, table: Tensor, level: Level
    ) -> tuple[Tensor, Tensor]:
        """By lists of who reads a point, which the level keeps."""
        if level.readers is None:
            level.readers = points.readers(level.neighbours, level.cells)
        return points.gradients(grad, g, xyz, rel, table, level.neighbours, level.cells, level.readers)

    def point_conv(
        self, rows: Tensor, weight: Tensor, table: Tensor, bias: Tensor, xyz: Tensor, neighbours: Tensor,
        cells: Tensor, relu: bool,
    ) -> Tensor:  # fmt: skip
        return point_block.conv(rows, weight, table, bias, xyz, neighbours, cells, relu)

    def point_block(
        self, rows: Tensor, level: Level, mask: Tensor, dense: Tensor, folded: Folded, gated: bool
    ) -> Tensor:
        return point_block.block(rows, level, mask, dense, folded, gated)

    def point_network(self, weights: PointNetworkWeights) -> PreparedPointNetwork | None:
        """In one call."""
        return point_network.PointNetwork(weights)

    def masked_network(self, weights: MaskedNetworkWeights) -> Callable[[Tensor], Tensor] | None:
        """Its blocks in one call, its stages in another."""
        return masked_network.prepared(weights)

    def point_linear(
        self, rows: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, add_map: Tensor | None, relu: bool
    ) -> Tensor:
        return point_block.linear(rows, weight, bias, add, add_map, relu)

    def add_relu(self, a: Tensor, b: Tensor, mask: Tensor | None, dense: Tensor | None) -> Tensor:
        """In one pass, where both lie in rows."""
        if not all(one.movedim(1, -1).is_contiguous() for one in (a, b)):
            return super().add_relu(a, b, mask, dense)
        rows, other = (one.movedim(1, -1).reshape(-1, one.shape[1]) for one in (a, b))
        if mask is None:
            library.add_relu(rows, other)
        else:
            library.add_relu(rows, other, mask.reshape(-1), int(dense.sum()))
        return a


BACKEND = Native()
