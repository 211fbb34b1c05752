"""An inverted residual under masks: expansion, depth-wise and projection share the block's data mask."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.ops import dispatch
from sparsemask.ops.inverted_residual import around, spread
from sparsemask.ops.weight_cache import last
from sparsemask.spaces.backbones.mobilenet_v2 import LinearBottleneck
from sparsemask.spaces.sparse_conv.locator import Locator
from sparsemask.spaces.sparse_conv.masked_network import MaskModule
from sparsemask.spaces.specialized.masks import Channels, gated


class MaskedBottleneck(MaskModule, LinearBottleneck):
    """A :class:`LinearBottleneck` with a data mask and channel masks.

    Masks act after batch norm and activation; a depth-wise convolution reads zeros where its input was dropped; the
    shortcut passes everywhere, so that a dropped location of a residual block is the identity. At stride 2 a location
    of the input is kept if the output it lies in is.

    Masks multiply; after :meth:`fold` the operator `sparsemask::inverted_residual` skips what they drop. Where the data
    mask selects nothing, the folded block has no mask branch.
    """

    backend = "auto"  # see :func:`sparsemask.sparse.set_backend`
    tau = 1.0

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, expansion: float, expand: bool, momentum: float
    ):
        super().__init__(in_channels, out_channels, stride, expansion, expand, momentum)
        middle = self.conv2.out_channels
        self.stride = stride
        self.locate = Locator(in_channels, stride)
        self.channels = Channels([middle, middle, out_channels][not expand :])
        self.folded = self.unmasked = False
        self.seen = None

    @classmethod
    def of(cls, block: LinearBottleneck) -> MaskedBottleneck:
        """Copy a block and add newly initialised masks."""
        first = block.conv1 if block.expand else block.conv2
        inputs, middle = first.in_channels, block.conv2.out_channels
        stride, momentum = block.conv2.stride[0], block.bn2.momentum
        masked = cls(inputs, block.conv3.out_channels, stride, middle / inputs, block.expand, momentum)
        masked.shortcut = block.shortcut  # channel numbers of a narrowed block may agree by chance
        for name, part in block.named_children():
            masked.get_submodule(name).load_state_dict(part.state_dict())
        return masked

    def __getstate__(self) -> dict:
        return self.__dict__ | {"seen": None}  # part of a graph: neither copied nor pickled

    def fold(self) -> None:
        """Switch to the skipping form, irreversibly; batch norms must be folded into the convolutions already."""
        self.folded, self.unmasked = True, self.constant_mask() is True
        self.locate.fold()
        for conv in self._convs:
            conv.weight, conv.bias = (nn.Parameter(last(p.detach()), False) for p in (conv.weight, conv.bias))
            last(conv.weight), last(conv.bias)
        self.hard = [last(flags) for flags in self.channels()[1]]

    @property
    def _convs(self) -> list[nn.Conv2d]:
        return [self.conv1, self.conv2, self.conv3] if self.expand else [self.conv2, self.conv3]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', h, w). `seen` then holds what :meth:`counted` counts."""
        if self.unmasked:
            self.see_unmasked(len(x), tuple(x.shape[-2:]))
            return self._skip(x, None)
        mask, hard = self.locate(x, self.tau)
        if self.folded:
            self.seen = mask, hard, self.hard, self.hard, tuple(x.shape[-2:])
            return self._skip(x, mask)
        soft, hard_channels = self.channels(self.tau)
        self.seen = mask, hard, soft, hard_channels, tuple(x.shape[-2:])
        y, before = x, None
        remaining = list(soft)
        if self.expand:
            before = remaining.pop(0)
            wide = mask if self.stride == 1 else spread(mask, x.shape[-2:])
            y, _ = gated(self.conv1(y), None, lambda z: F.relu6(self.bn1(z)), wide, before)
        depthwise, projection = remaining
        z = self.conv2(y)
        a, b = _split(z, before)
        y, _ = gated(a, b, lambda z: F.relu6(self.bn2(z)), mask, depthwise)
        a, b = _split(y, depthwise, self.conv3)
        y, _ = gated(a, b, self.bn3, mask, projection)
        return x + y if self.shortcut else y

    def see_unmasked(self, batch: int, size: tuple[int, int]) -> None:
        """Note a pass of a folded block without a mask branch, of so many features of a size."""
        everywhere = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=self.conv3.weight.device)
        mask = everywhere.expand(batch, 1, *around(1, self.stride).output_size(size))
        vars(self)["seen"] = mask, mask, self.hard, self.hard, size  # nn.Module.__setattr__ is slow

    def channel_parameters(self) -> list[nn.Parameter]:
        """Of its convolutions, (1, ΣC, 2)."""
        return [self.channels.ch_mask]

    def branch(self) -> Locator:
        """The mask branch."""
        return self.locate

    def branch_end(self) -> tuple[Tensor, Tensor | None]:
        """Its last convolution."""
        return self.locate[-1].weight, self.locate[-1].bias

    def _skip(self, x: Tensor, mask: Tensor | None) -> Tensor:
        first = (self.conv1.weight, self.conv1.bias, self.hard[0]) if self.expand else (None, None, None)
        return torch.ops.sparsemask.inverted_residual(
            x, mask, *first, self.conv2.weight, self.conv2.bias, self.hard[-2], self.conv3.weight, self.conv3.bias,
            self.hard[-1], self.stride, self.shortcut, dispatch.current(self.backend),
        )  # fmt: skip

    @property
    def mask(self) -> Tensor:
        """Data mask of the last forward pass, (N, 1, h, w)."""
        return self.seen[0]

    def counted(self, hard: bool = False) -> list[tuple[int, Tensor]]:
        """Cost of each convolution in the last forward pass, for one image.

        Args:
            hard: of hard masks instead of soft ones.

        Returns:
            (multiply-adds with everything kept, executed fraction); fractions are differentiable in soft masks.
        """
        soft_mask, hard_mask, soft, hard_channels, size = self.seen
        mask, fractions = (hard_mask, hard_channels) if hard else (soft_mask, soft)
        fractions = [fraction.to(torch.float32) for fraction in fractions]
        kept, (h, w) = mask.to(torch.float32).mean(), mask.shape[-2:]
        counts, before = [], None
        if self.expand:
            wide = kept if self.stride == 1 else spread(mask, size).to(torch.float32).mean()
            before = fractions.pop(0)
            counts.append((self.conv1.weight.numel() * size[0] * size[1], _executed(before.mean(), wide)))
        dense_pairs = fractions[0] if before is None else before * fractions[0]
        counts.append((self.conv2.weight.numel() * h * w, _executed(dense_pairs.mean(), kept)))
        counts.append((self.conv3.weight.numel() * h * w, _executed(fractions[0].mean() * fractions[1].mean(), kept)))
        return counts

    def overhead(self) -> int:
        """Multiply-adds of the mask branch in the last forward pass, for one image."""
        return 0 if self.unmasked else self.locate.multiply_adds(*self.seen[-1])


def _split(
    x: Tensor, dense: Tensor | None, run: Callable[[Tensor], Tensor] = lambda part: part
) -> tuple[Tensor, Tensor | None]:
    """Outputs of a layer for its dense and for its sparse inputs; None without sparse inputs, if that is known."""
    if dense is None:
        return run(x), None
    share = dense.to(x.dtype).view(1, -1, 1, 1)
    if not share.requires_grad and bool((share == 1).all()):
        return run(x), None
    return run(x * share), run(x * (1 - share))


def _executed(everywhere: Tensor, kept: Tensor) -> Tensor:
    """Executed fraction of a layer's multiply-adds: dense products everywhere, all others at kept locations."""
    return everywhere + (1 - everywhere) * kept
