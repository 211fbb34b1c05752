"""Data mask branch: a small network that predicts from a module's input which locations are kept."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.sparse.gumbel import gumbel_mask

_CONV = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_UP = (None, nn.ConvTranspose2d, nn.ConvTranspose3d)
_POOL = (None, nn.AvgPool2d, nn.AvgPool3d)


class DataMask(nn.Sequential):
    """The data mask branch: an hourglass that halves the grid, two logits a location, index 1 keeps it.

    3×3 convolution, ReLU, average pooling by 2, 3×3 convolution, ReLU, transposed 3×3 convolution of stride 2, under
    the names 0, 3 and 5 of the public checkpoints (Wang et al. 2021, section 3.1). In one dimension (points, which
    have no grid) three 1×1 convolutions under the same names.

    Args:
        channels: of the features it looks at.
        dims: 1 (points), 2 or 3.
        width: channels inside; default a quarter of `channels`.

    Attributes:
        threshold: the probability of keeping above which a location is kept when masks are hard; 0.5 is the argmax.

    Raises:
        UseError: for other numbers of dimensions.
    """

    mask_mode = "soft"  # see :func:`sparsemask.sparse.set_mask_mode`

    def __init__(self, channels: int, dims: int = 2, width: int | None = None):
        if dims not in (1, 2, 3):
            raise UseError(f"data masks have 1, 2 or 3 dimensions, not {dims}")
        width = max(1, channels // 4) if width is None else width
        conv = _CONV[dims - 1]
        if dims == 1:
            middle, second, last = nn.Identity(), conv(width, width, 1), conv(width, 2, 1)
            first = conv(channels, width, 1)
        else:
            first = conv(channels, width, 3, padding=1)
            middle, second = _POOL[dims - 1](2), conv(width, width, 3, padding=1)
            last = _UP[dims - 1](width, 2, 3, stride=2, padding=1, output_padding=1)
        super().__init__(first, nn.ReLU(), middle, second, nn.ReLU(), last)
        self.dims, self.threshold = dims, 0.5

    def mask_parameters(self) -> Iterator[nn.Parameter]:
        """What :func:`sparsemask.sparse.set_mask_mode` freezes."""
        yield from self.parameters()

    def first(self) -> nn.Module:
        """The convolution of the features."""
        return self[0]

    def logits(self, x: Tensor) -> Tensor:
        """Features (N, C, *spatial) to logits (N, 2, *spatial); odd sizes are padded by their last row and cropped."""
        if self.dims == 1:
            return super().forward(x)
        spatial = x.shape[2:]
        odd = [n % 2 for n in spatial]
        if any(odd):
            x = F.pad(x, [side for remainder in reversed(odd) for side in (0, remainder)], mode="replicate")
        logits = super().forward(x)
        return logits[(..., *(slice(0, n) for n in spatial))] if any(odd) else logits

    def forward(self, x: Tensor, tau: float = 1.0) -> Tensor:
        """The data mask of features.

        Args:
            x: (N, C, *spatial).
            tau: temperature of the Gumbel noise, above 0.

        Returns:
            (N, 1, *spatial), soft in (0, 1) where masks are learnt, else bool.
        """
        logits = self.logits(x)
        if self.training and self.mask_mode == "soft":
            return gumbel_mask(logits, tau, dim=1)[:, 1:]
        drop, keep = logits[:, :1], logits[:, 1:]
        if self.threshold == 0.5:
            return keep > drop
        return torch.sigmoid(keep - drop) > self.threshold
