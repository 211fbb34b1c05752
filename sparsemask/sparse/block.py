"""A sparse mask module's layers under one data mask, and the 1×1 convolution over all their outputs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.ops import block, block_with_channel_attention, dispatch  # noqa: F401  registers the operators
from sparsemask.sparse.budget import kept_fraction
from sparsemask.sparse.channel_mask import ChannelMask
from sparsemask.sparse.layer import SparseMaskConv

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class SparseMaskBlock(ChannelMask):
    """Sparse mask convolutions in sequence; their outputs are concatenated and fused by a 1×1 convolution with bias.

    Wang et al., CVPR 2021 (arXiv 2006.09603), section 3.2. Parameters: `ch_mask` (1, C, L, 2), `body.{i}.weight`,
    `collect.weight`, `collect.bias`, as in the public checkpoints.

    Args:
        channels: C, of input, layers and output.
        layers: L, at least 1.
        kernel_size: odd; sizes are kept.
        dims: 1, 2 or 3.
        activation: of the layers; see :class:`SparseMaskConv`.

    Raises:
        UseError: for what is none of these.
    """

    backend = "auto"  # see :func:`sparsemask.sparse.set_backend`
    planned: str | None = None  # the backend in place of "auto", where one was chosen for the whole network

    def __init__(
        self, channels: int, layers: int = 4, kernel_size: int = 3, *, dims: int = 2, activation: str = "relu"
    ):
        if layers < 1:
            raise UseError(f"a block has at least one layer, got {layers}")
        super().__init__(channels, layers)
        self.body = nn.ModuleList(
            SparseMaskConv(channels, channels, kernel_size, dims=dims, activation=activation) for _ in range(layers)
        )
        self.collect = _CONV[dims - 1](layers * channels, channels, 1)
        self.activation = activation

    def forward(self, x: Tensor, mask: Tensor, tau: float = 1.0) -> tuple[Tensor, Tensor]:
        """The fused outputs of the layers.

        In evaluation with a bool mask locations are skipped (the operator `sparsemask::block`); in training or with a
        soft mask everything is computed, and the kept fractions are differentiable in the masks.

        Args:
            x: features (N, C, *spatial).
            mask: data mask (N, 1, *spatial), soft in [0, 1] or bool.
            tau: temperature of the soft channel masks, above 0.

        Returns:
            The features (N, C, *spatial) and the layers' kept fractions (L,), in [0, 1].

        Raises:
            UseError: for shapes that do not fit.
        """
        dense = self.channels(tau)
        kept = kept_fraction(mask, dense)
        if not self.training and not mask.is_floating_point():
            weights = [layer.weight for layer in self.body]
            y = torch.ops.sparsemask.block(
                x, mask, weights, dense, self.collect.weight, self.collect.bias, self.activation,
                dispatch.current(self.backend, self.planned, x),
            )  # fmt: skip
            return y, kept
        dense = dense if dense.is_floating_point() else dense.to(x.dtype)
        features, outputs, before = x, [], None
        for layer, mine in zip(self.body, dense.unbind(), strict=True):
            features = layer(features, mask, before, mine)
            outputs.append(features)
            before = mine
        return self.collect(torch.cat(outputs, 1)), kept

    def skips(self, x: Tensor, mask: Tensor) -> bool:
        """Whether :meth:`attended` may serve: in evaluation, under a hard mask, where nobody asks for gradients."""
        if self.training or mask.is_floating_point():
            return False
        return not torch.is_grad_enabled() or not (x.requires_grad or any(p.requires_grad for p in self.parameters()))

    def attended(self, x: Tensor, mask: Tensor, attention: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """x + a·y with y as :meth:`forward` gives it and a the factors of its mean; only where :meth:`skips`.

        Args:
            x: features (N, C, *spatial).
            mask: bool data mask (N, 1, *spatial).
            attention: weight and bias of the squeezing and of the exciting layer, see
                :class:`sparsemask.ops.block_with_channel_attention.AttendedBlockCall`.

        Returns:
            The features (N, C, *spatial) and the layers' kept fractions (L,).
        """
        dense = self.channels()
        out = torch.ops.sparsemask.attended_block(
            x, mask, [layer.weight for layer in self.body], dense, self.collect.weight, self.collect.bias,
            list(attention), self.activation, dispatch.current(self.backend, self.planned, x),
        )  # fmt: skip
        return out, kept_fraction(mask, dense)
