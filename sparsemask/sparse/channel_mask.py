"""Channel masks: which channels are dense, by a learnt parameter for every layer and channel."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from sparsemask.sparse.budget import harden_channels
from sparsemask.sparse.gumbel import gumbel_mask


class ChannelMask(nn.Module):
    """Channel masks of L layers of C channels (Wang et al. 2021, section 3.1).

    The parameter `ch_mask` (1, C, L, 2) holds two logits a channel, index 0 dense and 1 sparse, initialised U(0, 1).

    Args:
        channels: C.
        layers: L.
    """

    mask_mode = "soft"  # see :func:`sparsemask.sparse.set_mask_mode`

    def __init__(self, channels: int, layers: int = 1):
        super().__init__()
        self.ch_mask = nn.Parameter(torch.rand(1, channels, layers, 2))

    def mask_parameters(self) -> Iterator[nn.Parameter]:
        """What :func:`sparsemask.sparse.set_mask_mode` freezes."""
        yield self.ch_mask

    def channels(self, tau: float = 1.0) -> Tensor:
        """Dense shares (L, C): soft in (0, 1), one draw of noise, where masks are learnt; else bool, ties dense."""
        if self.training and self.mask_mode == "soft":
            return gumbel_mask(self.ch_mask, tau, dim=3)[0, :, :, 0].T
        return harden_channels(self.ch_mask)

    def forward(self, tau: float = 1.0) -> Tensor:
        """As :meth:`channels`."""
        return self.channels(tau)
