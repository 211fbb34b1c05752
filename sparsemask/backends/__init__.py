"""Who computes the operators: backends by name, with the same numbers up to rounding.

Every module beside this file is a backend: it has an object `BACKEND` of a class derived from :class:`Backend`, is
known by the module's name and imported when it is first asked for. A backend of yours derives from it too, and is made
known by :func:`register_backend`; three members are enough::

    class Mine(Backend):
        name = "mine"

        def why_not(self, device, dtype):
            return None if device.type == "cpu" else "for CPUs only"

        def conv(self, call: ConvCall) -> torch.Tensor:
            ...

    register_backend("mine", Mine())
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.ops import (
    add_relu,
    block,
    block_with_channel_attention,
    concat_conv,
    cost_volume,
    dispatch,
    inverted_residual,
    kept_conv,
    merge_kept,
    multiscale_sum,
    point_block,
    point_conv,
    predict_mask,
)
from sparsemask.ops.block import BlockCall
from sparsemask.ops.block_with_channel_attention import AttendedBlockCall
from sparsemask.ops.concat_conv import ConcatConvCall
from sparsemask.ops.conv import ConvCall
from sparsemask.ops.inverted_residual import InvertedResidualCall
from sparsemask.ops.kept_conv import KeptConvCall
from sparsemask.ops.masked_network import MaskedNetworkWeights
from sparsemask.ops.merge_kept import MergeKeptCall
from sparsemask.ops.multiscale_sum import MultiscaleSumCall
from sparsemask.ops.point_conv import Level
from sparsemask.ops.point_network import PointNetworkWeights, PreparedPointNetwork
from sparsemask.ops.predict_mask import PredictMaskCall

__all__ = ["AttendedBlockCall", "Backend", "BlockCall", "ConvCall", "register_backend"]


class Backend(ABC):
    """Computes the operators' calls.

    Calls come checked (what does not fit was refused before), without gradients, on the device and in the type for
    which `why_not` answered None, and never with an empty mask. A method changes none of its arguments. The operator
    brings what it returns in the memory layout of the features. Methods may be called from several threads at once.

    What is not abstract has a default, made of `conv` where an operator is made of masked convolutions, else of torch's
    own operators (the operator's reference); a backend overrides what it has a faster form for.
    """

    name: ClassVar[str]
    """Under which it is asked for."""
    in_kept_rows: ClassVar[bool] = False
    """Whether chains under one mask are faster by `kept_conv` than by `conv`: whether it computes kept rows alone."""

    @abstractmethod
    def why_not(self, device: torch.device, dtype: torch.dtype) -> str | None:
        """Whether it can compute; asked at every call.

        Args:
            device, dtype: of the features.

        Returns:
            None where it can compute on this device in this type, else the reason in one line.
        """

    @abstractmethod
    def conv(self, call: ConvCall) -> Tensor:
        """One sparse mask convolution: the operator `sparsemask::conv`.

        Args:
            call: its arguments, see :class:`sparsemask.ops.conv.ConvCall`.

        Returns:
            (N, C_out, *out spatial) in the type of the features: act(conv(x) + bias) at kept locations; elsewhere the
            same of the dense channels of x in dense outputs, and exactly 0 in sparse ones.
        """

    # Made of `conv`

    def block(self, call: BlockCall) -> Tensor:
        """A module's layers and the 1×1 convolution over all of them, (N, C_out, *spatial): `sparsemask::block`."""
        return block.compose(self, call)

    def attended_block(self, call: AttendedBlockCall) -> Tensor:
        """The block times the factors of its mean, plus its input: `sparsemask::attended_block`."""
        return block_with_channel_attention.compose(self, call)

    def inverted_residual(self, call: InvertedResidualCall) -> Tensor:
        """Expansion, depth-wise and projection under one mask, (N, C', h, w): `sparsemask::inverted_residual`."""
        return inverted_residual.compose(self, call)

    # Of torch's own operators

    def kept_conv(self, call: KeptConvCall) -> Tensor:
        """A convolution at kept locations alone, (1, C_out, K, 1): `sparsemask::kept_conv`."""
        return kept_conv.reference(call)

    def merge_kept(self, call: MergeKeptCall) -> Tensor:
        """Kept features in their places, a 1×1 convolution elsewhere, (N, C, H, W): `sparsemask::merge_kept`."""
        return merge_kept.reference(call)

    def beats_dense(self, weight: Tensor) -> bool:
        """Whether its `joined_conv` is faster than torch's convolution of weights (C_out, C_in, *kernel)."""
        return False

    def joined_conv(self, call: ConcatConvCall) -> Tensor:
        """An unmasked convolution over several features as if concatenated: `sparsemask::joined_conv`."""
        return concat_conv.reference(call)

    def fuse_scales(self, call: MultiscaleSumCall) -> Tensor:
        """Features of several sizes convolved, upsampled and summed, and relu6 of it: `sparsemask::fuse_scales`."""
        return multiscale_sum.reference(call)

    def locate(self, call: PredictMaskCall) -> Tensor:
        """Which locations of a module's output are kept, bool (N, 1, h, w): `sparsemask::locate`."""
        return predict_mask.reference(call)

    def correlation_volume(self, left: Tensor, right: Tensor, levels: int, groups: int) -> Tensor:
        """Group-wise correlations (N, groups, levels, H, W): `sparsemask::correlation_volume`."""
        return cost_volume.reference(left, right, levels, groups)

    def point_cells(self, xyz: Tensor, neighbours: Tensor, radius: float, rule: str, size: int) -> Tensor:
        """The cell that each neighbour lies in, uint8 (R, K): `sparsemask::point_cells`."""
        return point_conv.cells_by_torch(xyz, neighbours, radius, rule, size)

    def point_means(self, rows: Tensor, neighbours: Tensor) -> Tensor:
        """Means over neighbours, (n, C): `sparsemask::point_means`."""
        return point_conv.means_by_torch(rows, neighbours)

    def point_aggregate(
        self, g: Tensor, xyz: Tensor, rel: Tensor, table: Tensor, neighbours: Tensor, cells: Tensor
    ) -> Tensor:
        """The pass over the neighbours of a point convolution, (R, C): `sparsemask::point_aggregate`."""
        return point_conv.aggregate_rows(g, xyz, rel, table, neighbours, cells)

    def point_gradients(
        self, grad: Tensor, g: Tensor, xyz: Tensor, rel: Tensor, table: Tensor, level: Level
    ) -> tuple[Tensor, Tensor]:
        """Gradients to g and table of that pass."""
        return point_conv.gradients(grad, g, xyz, rel, table, level)

    def point_conv(
        self, rows: Tensor, weight: Tensor, table: Tensor, bias: Tensor, xyz: Tensor, neighbours: Tensor,
        cells: Tensor, relu: bool,
    ) -> Tensor:  # fmt: skip
        """A point convolution with bias, (R, C_out): `sparsemask::point_conv`."""
        return point_block.conv_by_torch(rows, weight, table, bias, xyz, neighbours, cells, relu)

    def point_block(
        self, rows: Tensor, level: Level, mask: Tensor, dense: Tensor, folded: point_block.Folded, gated: bool
    ) -> Tensor:
        """A sparse block of point convolutions, (R, C): `sparsemask::point_block`."""
        return point_block.block_by_torch(rows, level, mask, dense, folded, gated)

    def point_network(self, weights: PointNetworkWeights) -> PreparedPointNetwork | None:
        """A whole network on points, prepared for many calls of weights that do not change: float32.

        None, the default: it is computed block by block.
        """
        return None

    def masked_network(self, weights: MaskedNetworkWeights) -> Callable[[Tensor], Tensor] | None:
        """A specialised network, prepared for many calls of weights that do not change: float32.

        None, the default: it is computed block by block.
        """
        return None

    def point_linear(
        self, rows: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None, add_map: Tensor | None, relu: bool
    ) -> Tensor:
        """A linear layer of rows with an addend, (R, C_out): `sparsemask::point_linear`."""
        return point_block.linear_by_torch(rows, weight, bias, add, add_map, relu)

    def add_relu(self, a: Tensor, b: Tensor, mask: Tensor | None, dense: Tensor | None) -> Tensor:
        """relu(a + b) under a mask, in place of `a` if possible: :func:`sparsemask.ops.add_relu.add_relu`."""
        return add_relu.reference(a, b, mask, dense)


def register_backend(name: str, backend: Backend) -> None:
    """Make a backend available under a name; replaces one of that name.

    Args:
        name: what `backend(name)` and `set_backend` call it.
        backend: an object of a class derived from :class:`Backend`.

    Raises:
        UseError: for anything else.
    """
    if not isinstance(backend, Backend):
        kind = backend.__name__ if isinstance(backend, type) else type(backend).__name__
        raise UseError(
            f"backend '{name}' must be an object of a class derived from sparsemask.sparse.Backend, "
            f"got {'the class' if isinstance(backend, type) else 'an object of'} {kind}"
        )
    dispatch.add(name, backend)
