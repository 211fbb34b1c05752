"""The light mask branch: predicts which locations of a module are kept from its pooled input."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.ops import dispatch
from sparsemask.ops.predict_mask import padded
from sparsemask.ops.weight_cache import last
from sparsemask.spaces.sparse_conv.masked_network import begin_smoothly
from sparsemask.sparse import gumbel_mask

NARROWEST, WIDEST = 4, 16  # channels of a mask branch
_EAGER = 0.5  # initial logits ±0.5 of keep and drop: a new branch keeps most locations


def width_of(channels: int) -> int:
    """Channels of a mask branch on so many."""
    return max(NARROWEST, min(WIDEST, channels // 4))


class Locator(nn.Sequential):
    """The mask branch: predicts a module's data mask from its input by a light hourglass at half the size.

    As SMSR's data masks (Wang et al. 2021, section 3.1), but with pooling before the first convolution, which is 1×1: a
    3×3 convolution at the input's size would cost as much as masks save of an inverted residual.

    Args:
        channels: of the module's input.
        stride: 1 or 2, of the module: masks are of size ceil(input / stride).
    """

    mask_mode = "soft"  # see :func:`sparsemask.sparse.set_mask_mode`
    backend = "auto"  # see :func:`sparsemask.sparse.set_backend`

    def __init__(self, channels: int, stride: int = 1):
        width = width_of(channels)
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
        logits = super().forward(padded(x))
        return logits[..., :height, :width] if self.stride == 1 else logits

    def first(self) -> nn.Conv2d:
        """The convolution of the features."""
        return cast(nn.Conv2d, self[1])

    def fold(self) -> None:
        """Switch to a single operator for evaluation, irreversibly."""
        self.folded = True
        for k in (1, 3, 5):
            conv = self[k]
            conv.weight, conv.bias = (nn.Parameter(p.detach(), False) for p in (conv.weight, conv.bias))
            last(conv.weight), last(conv.bias)

    def described(self) -> tuple:
        """Weights and biases of its three convolutions, and the threshold."""
        return *(p for k in (1, 3, 5) for p in (self[k].weight, self[k].bias)), self.threshold

    def forward(self, x: Tensor, tau: float = 1.0, apply_relu6: bool = False) -> tuple[Tensor, Tensor]:
        """Predict the mask.

        Args:
            x: features (N, C, H, W).
            tau: temperature of soft masks.
            apply_relu6: whether x passes ReLU6 first.

        Returns:
            (mask, hard mask), (N, 1, h, w) each; the mask is soft while masks are learnt, else the hard one.
        """
        if self.folded:
            mask = self.predicted(x, apply_relu6)
            return mask, mask
        logits = self.logits(F.relu6(x) if apply_relu6 else x)
        drop, keep = logits.detach().split(1, 1)
        hard = keep > drop if self.threshold == 0.5 else torch.sigmoid(keep - drop) > self.threshold
        if self.training and self.mask_mode == "soft":
            return gumbel_mask(logits, tau)[:, 1:], hard
        return hard, hard

    def predicted(self, x: Tensor, apply_relu6: bool = False) -> Tensor:
        """The hard mask of features, bool (N, 1, h, w), by a single operator; for inference."""
        chosen = dispatch.current(self.backend)
        mask: Tensor = torch.ops.sparsemask.locate(x, *self.described(), apply_relu6, chosen)
        return mask

    def multiply_adds(self, height: int, width: int) -> int:
        """Multiply-adds on one image whose features are height × width."""
        return -(-height // 2) * -(-width // 2) * sum(self[k].weight.numel() for k in (1, 3, 5))
