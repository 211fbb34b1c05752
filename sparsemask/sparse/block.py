"""A sparse mask module's body: convolutions in a chain, channel masks for each, a 1×1 fusion of all their outputs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.sparse.budget import kept_fraction
from sparsemask.sparse.geometry import Sizes
from sparsemask.sparse.layer import SparseMaskConv
from sparsemask.sparse.masks import channel_logits, hard_dense, soft_dense

_FUSE = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class SparseMaskBlock(nn.Module):
    """Sparse mask convolutions C -> C in a chain, all their outputs fused by a 1×1 convolution to C dense channels.

    Args:
        channels: C.
        layers: L.
        kernel_size: odd.
        dims: 1 (points), 2 or 3.
        activation: of every layer; the fusion has none.

    Under the public checkpoints' names: `ch_mask`, `body.{i}.weight`, `collect`. Source: SMSR (arXiv 2006.09603),
    section 3.2.
    """

    def __init__(
        self, channels: int, layers: int = 4, kernel_size: Sizes = 3, *, dims: int = 2, activation: str = "relu"
    ):
        super().__init__()
        self.ch_mask = channel_logits(channels, layers)
        self.body = nn.ModuleList(
            SparseMaskConv(channels, channels, kernel_size, dims=dims, activation=activation) for _ in range(layers)
        )
        if any(k % 2 == 0 for k in self.body[0].geometry.kernel):
            raise UseError(f"a block's kernels are odd, got {kernel_size}")
        self.collect = _FUSE[dims](channels * layers, channels, 1)
        self.activation, self.backend, self.mask_mode = activation, "auto", "soft"

    @property
    def dense(self) -> Tensor:
        """bool (L, C): the dense channels of every layer by the hard channel masks."""
        return hard_dense(self.ch_mask.detach())

    def forward(self, x: Tensor, mask: Tensor, tau: float = 1.0) -> tuple[Tensor, Tensor]:
        """(N, C, *spatial) under mask (N, 1, *spatial) -> (output (N, C, *spatial), kept fraction of every layer (L,)).

        mask: soft, or hard as float, in training; bool in evaluation.
        """
        if self.training:
            dense = soft_dense(self.ch_mask, tau) if self.mask_mode == "soft" else self.dense
            return self.masked(x, mask, dense), kept_fraction(mask, dense)
        dense = self.dense
        form = self.skipping if self.skips(x, mask) else self.masked
        return form(x, mask, dense), kept_fraction(mask, dense)

    def attended(self, x: Tensor, mask: Tensor, attention: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        """x + a·(the block's output), a from its mean by the `attention`'s four tensors; only where :meth:`skips`.

        See ``sparsemask::attended_block``. Returns the kept fractions too.
        """
        dense, weights = self.dense, [layer.weight for layer in self.body]
        out = torch.ops.sparsemask.attended_block(
            x, mask, weights, dense, self.collect.weight, self.collect.bias, *attention, self.activation, self.backend
        )
        return out, kept_fraction(mask, dense)

    def skips(self, x: Tensor, mask: Tensor) -> bool:
        """Whether the operator computes: in evaluation, with a hard mask, where nobody asks for gradients."""
        if self.training or mask.dtype != torch.bool:
            return False
        return not (torch.is_grad_enabled() and self._wants_gradients(x))

    def masked(self, x: Tensor, mask: Tensor, dense: Tensor) -> Tensor:
        """The training form of all layers; dense (L, C) soft or bool."""
        before = torch.ones(x.shape[1], dtype=dense.dtype, device=x.device)
        outputs = []
        for layer, mine in zip(self.body, dense, strict=True):
            x = layer.masked(x, mask, before, mine)
            outputs.append(x)
            before = mine
        return self.collect(torch.cat(outputs, 1))  # plain, as published: with hard masks the split form is equal

    def skipping(self, x: Tensor, mask: Tensor, dense: Tensor) -> Tensor:
        """Through the operator, which computes only what the masks keep."""
        weights = [layer.weight for layer in self.body]
        return torch.ops.sparsemask.block(
            x, mask, weights, dense, self.collect.weight, self.collect.bias, self.activation, self.backend
        )

    def _wants_gradients(self, x: Tensor) -> bool:
        return x.requires_grad or any(p.requires_grad for p in self.parameters())
