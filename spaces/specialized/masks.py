"""Parts that masks are made of: the branch that says where, the gate on a convolution, a mask on another grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.ops import dispatch, multiscale_sum
from sparsemask.ops.predict_mask import padded
from sparsemask.ops.weight_cache import last
from sparsemask.spaces.sparse_conv.masked_network import begin_smoothly
from sparsemask.sparse import gumbel_mask

NARROWEST, WIDEST = 4, 16  # channels of a mask branch
_EAGER = 0.5  # logits a fresh branch keeps and drops with: most is kept, as the network was trained


class MaskedModule(Protocol):
    """What a network's accounts ask of a module with masks."""

    locate: Locator | None
    """The branch that predicts its data mask; None: it has a channel mask alone."""
    tau: float
    """Temperature of its soft masks."""
    seen: tuple | None
    """What the last forward pass left to be counted."""

    @property
    def mask(self) -> Tensor:
        """Where it computed in the last forward pass, (N, 1, h, w); without a data mask everywhere."""

    def overhead(self) -> int:
        """Multiply-adds of the mask branch in the last forward pass, for one picture."""

    def fold(self) -> None:
        """Skip from now on; batch norms are folded into the convolutions already. There is no way back."""


class Locator(nn.Sequential):
    """Which locations of a module's output matter, from its input: a light hourglass at half the input's size.

    As the data masks of SMSR (Wang et al. 2021, section 3.1), but pooled before the first convolution, which is 1×1: an
    inverted residual is itself so light that a 3×3 convolution at its input's size would cost what masks save.

    Args:
        channels: of the module's input.
        stride: 1 or 2, of the module: masks are of size ceil(input / stride).
    """

    mask_mode = "soft"  # see :func:`sparsemask.sparse.set_mask_mode`
    backend = "auto"  # see :func:`sparsemask.sparse.set_backend`

    def __init__(self, channels: int, stride: int = 1):
        width = max(NARROWEST, min(WIDEST, channels // 4))
        final = nn.ConvTranspose2d(width, 2, 3, 2, 1, output_padding=1) if stride == 1 else nn.Conv2d(width, 2, 1)
        super().__init__(
            nn.AvgPool2d(2), nn.Conv2d(channels, width, 1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            final,
        )  # fmt: skip
        if stride == 1:
            begin_smoothly(final)
        with torch.no_grad():
            final.bias.copy_(torch.tensor([-_EAGER, _EAGER]))
        self.stride, self.threshold, self.folded = stride, 0.5, False

    def mask_parameters(self) -> Iterator[nn.Parameter]:
        """What :func:`sparsemask.sparse.set_mask_mode` freezes."""
        yield from self.parameters()

    def logits(self, x: Tensor) -> Tensor:
        """Features (N, C, H, W) to logits (N, 2, h, w), index 1 keeps; odd sizes are padded by their last row."""
        height, width = x.shape[-2:]
        found = super().forward(padded(x))
        return found[..., :height, :width] if self.stride == 1 else found

    def fold(self) -> None:
        """Be one operator from now on, for evaluation only. There is no way back."""
        self.folded = True
        for k in (1, 3, 5):
            one = self[k]
            one.weight, one.bias = (nn.Parameter(p.detach(), False) for p in (one.weight, one.bias))
            last(one.weight), last(one.bias)

    def described(self) -> tuple:
        """Weights and biases of its three convolutions, and the threshold."""
        return *(p for k in (1, 3, 5) for p in (self[k].weight, self[k].bias)), self.threshold

    def forward(self, x: Tensor, tau: float = 1.0, cut: bool = False) -> tuple[Tensor, Tensor]:
        """(mask, hard mask), (N, 1, h, w) each; soft in training while masks are learnt, else both the hard one.

        cut: relu6 of x is read.
        """
        if self.folded:
            mask = torch.ops.sparsemask.locate(x, *self.described(), cut, dispatch.current(self.backend))
            return mask, mask
        logits = self.logits(F.relu6(x) if cut else x)
        drop, keep = logits.detach().split(1, 1)
        hard = keep > drop if self.threshold == 0.5 else torch.sigmoid(keep - drop) > self.threshold
        if self.training and self.mask_mode == "soft":
            return gumbel_mask(logits, tau)[:, 1:], hard
        return hard, hard

    def multiply_adds(self, height: int, width: int) -> int:
        """Of one picture whose features are height × width."""
        return -(-height // 2) * -(-width // 2) * sum(self[k].weight.numel() for k in (1, 3, 5))


class Channels(nn.Module):
    """Channel masks of a module's convolutions, one after the other in `ch_mask` (1, ΣC, 2), index 0 dense.

    The logits start from U(0, 1), as published. widths: output channels of each convolution.
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
        """(dense shares, hard ones) of each convolution, (C,); soft in training while masks are learnt."""
        hard = (self.ch_mask[0, :, 0] >= self.ch_mask[0, :, 1]).detach()
        soft = hard
        if self.training and self.mask_mode == "soft":
            soft = gumbel_mask(self.ch_mask, tau, 2)[0, :, 0]
        return list(soft.split(self.widths)), list(hard.split(self.widths))

    def some(self, tau: float = 1.0) -> tuple[Tensor, Tensor]:
        """(dense shares, hard ones), (C,), of a module with one convolution's mask: its likeliest channel stays."""
        (soft,), (hard,) = self(tau)
        if not hard.any():
            logits = self.ch_mask[0].detach()
            hard = torch.arange(len(hard), device=hard.device) == (logits[:, 0] - logits[:, 1]).argmax()
            soft = soft if soft.is_floating_point() else hard
        return soft, hard

    @torch.no_grad()
    def rank(self, importance: Tensor) -> None:
        """Begin with all channels dense, those of least `importance` (C,) the nearest to being dropped."""
        places = importance.argsort().argsort().to(self.ch_mask)
        self.ch_mask[0, :, 0] = (places + 1) / len(places)
        self.ch_mask[0, :, 1] = 0


def gated(
    a: Tensor, b: Tensor | None, norm: Callable[[Tensor], Tensor], mask: Tensor, dense: Tensor
) -> tuple[Tensor, Tensor]:
    """(g·norm(a + M/g·b), g) with the gate g = d + (1 - d)·M: a sparse mask convolution's training form.

    Its dense inputs gave `a`, its sparse ones `b` (None: there are none); `norm` is all that follows the convolution,
    bias, batch norm and activation; masks act after it (Wang et al. 2021, section 3.2, with norm and bias). With hard
    masks it is what skipping computes.

    Args:
        mask: (N, 1, H, W); dense: (C,); both soft or bool.
    """
    mask = mask.to(a.dtype)
    dense = dense.to(a.dtype).view(1, -1, 1, 1)
    gate = dense + (1 - dense) * mask
    if b is not None:
        a = torch.addcmul(a, mask / gate.clamp_min(torch.finfo(gate.dtype).eps), b)
    return gate * norm(a), gate


def carry(mask: Tensor, size: Sequence[int]) -> Tensor:
    """A mask (N, 1, H, W) on the grid of a feature (h, w) that is upsampled to it, corners aligned.

    A location is kept if any that reads it is: bool masks exactly; of soft ones the greatest about it.
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
    """The same of a bool mask by two products with who reads whom: sizes may be open."""
    found = mask.to(torch.float32)
    for d in (2, 3):
        n, m = size[d - 2], mask.shape[d]
        at = torch.arange(m, device=mask.device) * ((n - 1) / (m - 1))  # n < m: a feature is never finer
        reads = ((at[None] - torch.arange(n, device=mask.device)[:, None]).abs() < 1 + 1e-4).to(torch.float32)
        found = reads @ found if d == 2 else found @ reads.t()
    return found > 0
