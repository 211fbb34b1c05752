"""An inverted residual with a channel mask only: dropped channels are removed.

On small maps predicting a data mask takes longer than it saves; fewer channels are faster on any map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.ops import dispatch
from sparsemask.ops.inverted_residual import around
from sparsemask.ops.weight_cache import last
from sparsemask.spaces.backbones.mobilenet_v2 import LinearBottleneck
from sparsemask.spaces.sparse_conv.masked_network import MaskModule
from sparsemask.spaces.specialized.masks import Channels


class NarrowBottleneck(MaskModule, LinearBottleneck):
    """A :class:`LinearBottleneck` with an expansion and a mask over its expanded channels.

    Expansion, depth-wise convolution and projection share the expanded channels, so that one mask serves all three. The
    projection's outputs are kept, since shortcuts add to them.

    The mask multiplies; :meth:`fold` removes the dropped channels.
    """

    backend = "auto"  # see :func:`sparsemask.sparse.set_backend`
    tau = 1.0
    locate = None  # no data mask

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: float, momentum: float):
        super().__init__(in_channels, out_channels, stride, expansion, True, momentum)
        self.stride = stride
        self.channels = Channels([self.conv2.out_channels])
        self.folded = False
        self.seen = None

    @classmethod
    def of(cls, block: LinearBottleneck) -> NarrowBottleneck:
        """Copy a block and add a newly initialised mask."""
        inputs, middle = block.conv1.in_channels, block.conv2.out_channels
        narrow = cls(inputs, block.conv3.out_channels, block.conv2.stride[0], middle / inputs, block.bn2.momentum)
        narrow.shortcut = block.shortcut  # channel numbers of a narrowed block may agree by chance
        for name, part in block.named_children():
            narrow.get_submodule(name).load_state_dict(part.state_dict())
        return narrow

    def __getstate__(self) -> dict:
        return self.__dict__ | {"seen": None}

    def channel_parameters(self) -> list[nn.Parameter]:
        """Of the expanded channels, (1, C, 2)."""
        return [self.channels.ch_mask]

    def branch(self) -> None:
        """None: it has no data mask."""

    @torch.no_grad()
    def begin(self) -> None:
        """Rank channels by the norms of batch norm and projection, so that the least important are dropped first."""
        scale = (self.bn2.weight.square() + self.bn2.bias.clamp_min(0).square()).sqrt()
        self.channels.rank(scale * self.conv3.weight.flatten(1).norm(dim=0))

    def narrowed(self) -> LinearBottleneck:
        """The block with its kept channels only; batch norms must be folded into the convolutions already."""
        kept = self.channels.some()[1].nonzero().flatten()
        inputs, outputs, count = self.conv1.in_channels, self.conv3.out_channels, len(kept)
        block = LinearBottleneck(inputs, outputs, self.stride, 1, True, 0.1)
        block.conv1, block.conv2 = nn.Conv2d(inputs, count, 1), nn.Conv2d(count, count, 3, self.stride, 1, groups=count)
        block.conv3 = nn.Conv2d(count, outputs, 1)
        block.bn1 = block.bn2 = block.bn3 = nn.Identity()
        block.shortcut = self.shortcut
        tensors = (self.conv1.weight[kept], self.conv1.bias[kept], self.conv2.weight[kept], self.conv2.bias[kept])
        tensors += (self.conv3.weight[:, kept], self.conv3.bias)
        for n, conv in enumerate((block.conv1, block.conv2, block.conv3)):
            conv.weight, conv.bias = (nn.Parameter(p.detach().contiguous(), False) for p in tensors[2 * n : 2 * n + 2])
        return block.eval()

    def fold(self) -> None:
        """Remove the dropped channels, irreversibly; batch norms must be folded into the convolutions already."""
        self.folded, self.hard = True, self.channels.some()[1]
        narrowed = self.narrowed()
        self.conv1, self.conv2, self.conv3 = narrowed.conv1, narrowed.conv2, narrowed.conv3
        for conv in (self.conv1, self.conv2, self.conv3):
            last(conv.weight), last(conv.bias)
        self.none, self.no_outputs = (
            last(torch.zeros(conv.out_channels, dtype=torch.bool, device=conv.weight.device))
            for conv in (self.conv2, self.conv3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', h, w). `seen` then holds what :meth:`counted` counts."""
        if self.folded:
            self.seen = x.shape[0], self.hard, self.hard, tuple(x.shape[-2:])
            return torch.ops.sparsemask.inverted_residual(
                x, None, self.conv1.weight, self.conv1.bias, self.none, self.conv2.weight, self.conv2.bias, self.none,
                self.conv3.weight, self.conv3.bias, self.no_outputs, self.stride, self.shortcut,
                dispatch.current(self.backend),
            )  # fmt: skip
        soft, hard_channels = self.channels.some(self.tau)
        self.seen = x.shape[0], soft, hard_channels, tuple(x.shape[-2:])
        y = F.relu6(self.bn1(self.conv1(x)))
        y = F.relu6(self.bn2(self.conv2(y))) * soft.to(x.dtype).view(1, -1, 1, 1)
        y = self.bn3(self.conv3(y))
        return x + y if self.shortcut else y

    @property
    def mask(self) -> Tensor:
        """Data mask of the last forward pass, (N, 1, h, w): all ones."""
        batch, _, _, size = self.seen
        everywhere = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.conv3.weight.device)
        return everywhere.expand(batch, 1, *around(1, self.stride).output_size(size))

    def counted(self, hard: bool = False) -> list[tuple[int, Tensor]]:
        """Cost of each convolution in the last forward pass, for one image.

        Args:
            hard: of hard masks instead of soft ones.

        Returns:
            (multiply-adds with everything kept, executed fraction); fractions are differentiable in soft masks.
        """
        _, soft, hard_channels, (height, width) = self.seen
        share = (hard_channels if hard else soft).to(torch.float32)
        locations, count = torch.tensor(self.mask.shape[-2:]).prod().item(), len(share)
        inputs, outputs = self.conv1.in_channels, self.conv3.out_channels
        totals = (inputs * count * height * width, 9 * count * locations, count * outputs * locations)
        return [(total, share.mean()) for total in totals]

    def overhead(self) -> int:
        """0: there is no mask branch."""
        return 0
