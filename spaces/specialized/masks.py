"""Building blocks of masks: the mask branch, channel masks, the gate of a convolution, masks on other grids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.ops import multiscale_sum
from sparsemask.spaces.sparse_conv.locator import Locator
from sparsemask.sparse import gumbel_mask


class MaskedModule(Protocol):
    """A module with masks, as :class:`sparsemask.spaces.specialized.accounting.Accounts` uses it."""

    locate: Locator | None
    """The branch that predicts its data mask; None: it has a channel mask alone."""
    tau: float
    """Temperature of its soft masks."""
    seen: tuple | None
    """Masks and sizes of the last forward pass, for counting."""

    @property
    def mask(self) -> Tensor:
        """Data mask of the last forward pass, (N, 1, h, w); all ones without a mask branch."""

    def overhead(self) -> int:
        """Multiply-adds of the mask branch in the last forward pass, for one image."""

    def fold(self) -> None:
        """Switch to the skipping form, irreversibly; batch norms must be folded into the convolutions already."""


class Channels(nn.Module):
    """Channel masks of a module's convolutions, concatenated in `ch_mask` (1, ΣC, 2), index 0 dense.

    Logits are initialised from U(0, 1), as published.

    Args:
        widths: output channels of each convolution.
    """

    mask_mode = "soft"  # see :func:`sparsemask.sparse.set_mask_mode`

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.widths = list(widths)
        self.ch_mask = nn.Parameter(torch.rand(1, sum(widths), 2))

    def mask_parameters(self) -> Iterator[nn.Parameter]:
        """What :func:`sparsemask.sparse.set_mask_mode` freezes."""
        yield self.ch_mask

    def forward(self, tau: float = 1.0) -> tuple[list[Tensor], list[Tensor]]:
        """(masks, hard masks) of each convolution, (C,), 1 is dense; the first are soft while masks are learnt."""
        hard = (self.ch_mask[0, :, 0] >= self.ch_mask[0, :, 1]).detach()
        soft = hard
        if self.training and self.mask_mode == "soft":
            soft = gumbel_mask(self.ch_mask, tau, 2)[0, :, 0]
        return list(soft.split(self.widths)), list(hard.split(self.widths))

    def some(self, tau: float = 1.0) -> tuple[Tensor, Tensor]:
        """(mask, hard mask), (C,), of a module with a single mask; at least the most probable channel is kept."""
        (soft,), (hard,) = self(tau)
        if not hard.any():
            logits = self.ch_mask[0].detach()
            hard = torch.arange(len(hard), device=hard.device) == (logits[:, 0] - logits[:, 1]).argmax()
            soft = soft if soft.is_floating_point() else hard
        return soft, hard

    @torch.no_grad()
    def rank(self, importance: Tensor) -> None:
        """Initialise all channels as dense, those of least `importance` (C,) closest to being dropped."""
        ranks = importance.argsort().argsort().to(self.ch_mask)
        self.ch_mask[0, :, 0] = (ranks + 1) / len(ranks)
        self.ch_mask[0, :, 1] = 0


def gated(
    a: Tensor, b: Tensor | None, norm: Callable[[Tensor], Tensor], mask: Tensor, dense: Tensor
) -> tuple[Tensor, Tensor]:
    """Training form of a sparse mask convolution: (g·norm(a + M/g·b), g) with the gate g = d + (1 - d)·M.

    Masks act after bias, batch norm and activation (Wang et al. 2021, section 3.2, with norm and bias). With hard masks
    the result equals the skipping form's.

    Args:
        a: the convolution of the dense inputs, (N, C, H, W).
        b: that of the sparse inputs; None: there are none.
        norm: what follows the convolution: bias, batch norm and activation.
        mask: data mask M, (N, 1, H, W), soft or bool.
        dense: channel mask d, (C,), soft or bool.

    Returns:
        The output and the gate.
    """
    mask = mask.to(a.dtype)
    dense = dense.to(a.dtype).view(1, -1, 1, 1)
    gate = dense + (1 - dense) * mask
    if b is not None:
        a = torch.addcmul(a, mask / gate.clamp_min(torch.finfo(gate.dtype).eps), b)
    return gate * norm(a), gate


def carry(mask: Tensor, size: Sequence[int]) -> Tensor:
    """Carry a mask to the grid of a smaller feature that is upsampled to the mask's size, corners aligned.

    A location is kept if any location that reads it is; for soft masks by an adaptive maximum.

    Args:
        mask: (N, 1, H, W), bool or soft.
        size: (h, w) of the feature.

    Returns:
        (N, 1, h, w).
    """
    size = tuple(size)
    if tuple(mask.shape[-2:]) == size:
        return mask
    if torch.compiler.is_exporting():
        return _carried(mask, size)
    if mask.is_floating_point():
        return F.adaptive_max_pool2d(mask, size)
    return multiscale_sum.carry(mask, size)


def _carried(mask: Tensor, size: Sequence[int]) -> Tensor:
    """As :func:`carry` for bool masks and dynamic sizes, by products with matrices of which location reads which."""
    reached = mask.to(torch.float32)
    for d in (2, 3):
        n, m = size[d - 2], mask.shape[d]
        at = torch.arange(m, device=mask.device) * ((n - 1) / (m - 1))  # n < m: a feature is never finer
        reads = ((at[None] - torch.arange(n, device=mask.device)[:, None]).abs() < 1 + 1e-4).to(torch.float32)
        reached = reads @ reached if d == 2 else reached @ reads.t()
    return reached > 0
