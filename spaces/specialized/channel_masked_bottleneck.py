"""An inverted residual under a channel mask alone: what is dropped is dropped everywhere, and really removed.

On small maps a data mask takes longer than it saves; fewer channels are faster on any map.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.ops import dispatch
from sparsemask.ops.inverted_residual import around
from sparsemask.ops.weight_cache import last
from sparsemask.spaces.backbones.mobilenet_v2 import LinearBottleneck
from sparsemask.spaces.specialized.masks import Channels


class NarrowBottleneck(LinearBottleneck):
    """A :class:`LinearBottleneck` with an expansion, of which a mask says which expanded channels there are.

    A depth-wise convolution reads one channel of the expansion and the projection one of either, so that one mask
    serves all three. The projection's outputs stay: a shortcut carries them.

    After :meth:`fold` the dropped channels are gone; before, the mask multiplies.
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
        """The same block with a fresh mask on it."""
        inputs, middle = block.conv1.in_channels, block.conv2.out_channels
        made = cls(inputs, block.conv3.out_channels, block.conv2.stride[0], middle / inputs, block.bn2.momentum)
        made.shortcut = block.shortcut  # of a narrowed block numbers may agree by chance
        for name, part in block.named_children():
            made.get_submodule(name).load_state_dict(part.state_dict())
        return made

    def __getstate__(self) -> dict:
        return self.__dict__ | {"seen": None}

    @torch.no_grad()
    def begin(self) -> None:
        """Let channels that say little, by batch norm and projection, be the first to go."""
        scale = (self.bn2.weight.square() + self.bn2.bias.clamp_min(0).square()).sqrt()
        self.channels.rank(scale * self.conv3.weight.flatten(1).norm(dim=0))

    def narrowed(self) -> LinearBottleneck:
        """The block with the channels that are left alone, batch norms folded into the convolutions already."""
        left = self.channels.some()[1].nonzero().flatten()
        inputs, outputs, count = self.conv1.in_channels, self.conv3.out_channels, len(left)
        made = LinearBottleneck(inputs, outputs, self.stride, 1, True, 0.1)
        made.conv1, made.conv2 = nn.Conv2d(inputs, count, 1), nn.Conv2d(count, count, 3, self.stride, 1, groups=count)
        made.conv3 = nn.Conv2d(count, outputs, 1)
        made.bn1 = made.bn2 = made.bn3 = nn.Identity()
        made.shortcut = self.shortcut
        kept = (self.conv1.weight[left], self.conv1.bias[left], self.conv2.weight[left], self.conv2.bias[left])
        kept += (self.conv3.weight[:, left], self.conv3.bias)
        for n, conv in enumerate((made.conv1, made.conv2, made.conv3)):
            conv.weight, conv.bias = (nn.Parameter(p.detach().contiguous(), False) for p in kept[2 * n : 2 * n + 2])
        return made.eval()

    def fold(self) -> None:
        """Remove the dropped channels; batch norms are folded into the convolutions already. There is no way back."""
        self.folded, self.hard = True, self.channels.some()[1]
        left = self.narrowed()
        self.conv1, self.conv2, self.conv3 = left.conv1, left.conv2, left.conv3
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
        soft, sure = self.channels.some(self.tau)
        self.seen = x.shape[0], soft, sure, tuple(x.shape[-2:])
        y = F.relu6(self.bn1(self.conv1(x)))
        y = F.relu6(self.bn2(self.conv2(y))) * soft.to(x.dtype).view(1, -1, 1, 1)
        y = self.bn3(self.conv3(y))
        return x + y if self.shortcut else y

    @property
    def mask(self) -> Tensor:
        """Where it computed in the last forward pass: everywhere, (N, 1, h, w)."""
        batch, _, _, size = self.seen
        whole = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.conv3.weight.device)
        return whole.expand(batch, 1, *around(1, self.stride).output_size(size))

    def counted(self, hard: bool = False) -> list[tuple[int, Tensor]]:
        """(multiply-adds with everything kept, share executed) of each convolution in the last forward pass.

        For one picture; shares are differentiable while masks are learnt. hard: of the hard masks in their place.
        """
        _, soft, sure, (height, width) = self.seen
        share = (sure if hard else soft).to(torch.float32)
        places, count = torch.tensor(self.mask.shape[-2:]).prod().item(), len(share)
        inputs, outputs = self.conv1.in_channels, self.conv3.out_channels
        whole = (inputs * count * height * width, 9 * count * places, count * outputs * places)
        return [(one, share.mean()) for one in whole]

    def overhead(self) -> int:
        """There is no mask branch."""
        return 0
