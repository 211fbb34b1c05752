"""An inverted residual under masks: expansion, depth-wise and projection share the block's data mask."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.ops import dispatch
from sparsemask.ops.inverted_residual import spread
from sparsemask.ops.weight_cache import last
from sparsemask.spaces.backbones.mobilenet_v2 import LinearBottleneck
from sparsemask.spaces.specialized.masks import Channels, Locator, gated


class MaskedBottleneck(LinearBottleneck):
    """A :class:`LinearBottleneck` that computes where, and in which channels, its masks say.

    Masks act after batch norm and activation; a depth-wise convolution reads zeros where its input was dropped; the
    shortcut passes everywhere, so that a dropped location of a residual block is the identity. At stride 2 a location
    of the input is kept if the output it lies in is.

    After :meth:`fold` it skips, by the operator `sparsemask::inverted_residual`; before, masks multiply.
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
        self.folded = False
        self.seen = None

    @classmethod
    def of(cls, block: LinearBottleneck) -> MaskedBottleneck:
        """The same block with fresh masks on it."""
        first = block.conv1 if block.expand else block.conv2
        inputs, middle = first.in_channels, block.conv2.out_channels
        stride, momentum = block.conv2.stride[0], block.bn2.momentum
        made = cls(inputs, block.conv3.out_channels, stride, middle / inputs, block.expand, momentum)
        made.shortcut = block.shortcut  # of a narrowed block numbers may agree by chance
        for name, part in block.named_children():
            made.get_submodule(name).load_state_dict(part.state_dict())
        return made

    def __getstate__(self) -> dict:
        return self.__dict__ | {"seen": None}  # part of a graph: neither copied nor pickled

    def fold(self) -> None:
        """Skip from now on; the batch norms are folded into the convolutions already. There is no way back."""
        self.folded = True
        self.locate.fold()
        for conv in self._convs:
            conv.weight, conv.bias = (nn.Parameter(last(p.detach()), False) for p in (conv.weight, conv.bias))
            last(conv.weight), last(conv.bias)
        self.hard = [last(one) for one in self.channels()[1]]

    @property
    def _convs(self) -> list[nn.Conv2d]:
        return [self.conv1, self.conv2, self.conv3] if self.expand else [self.conv2, self.conv3]

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', h, w). `seen` then holds what :meth:`counted` counts."""
        mask, hard = self.locate(x, self.tau)
        if self.folded:
            self.seen = mask, hard, self.hard, self.hard, tuple(x.shape[-2:])
            return self._skip(x, mask)
        soft, sure = self.channels(self.tau)
        self.seen = mask, hard, soft, sure, tuple(x.shape[-2:])
        y, before = x, None
        rest = list(soft)
        if self.expand:
            before = rest.pop(0)
            wide = mask if self.stride == 1 else spread(mask, x.shape[-2:])
            y, _ = gated(self.conv1(y), None, lambda z: F.relu6(self.bn1(z)), wide, before)
        depthwise, projection = rest
        z = self.conv2(y)
        a, b = _split(z, before)
        y, _ = gated(a, b, lambda z: F.relu6(self.bn2(z)), mask, depthwise)
        a, b = _split(y, depthwise, self.conv3)
        y, _ = gated(a, b, self.bn3, mask, projection)
        return x + y if self.shortcut else y

    def _skip(self, x: Tensor, mask: Tensor) -> Tensor:
        first = (self.conv1.weight, self.conv1.bias, self.hard[0]) if self.expand else (None, None, None)
        return torch.ops.sparsemask.inverted_residual(
            x, mask, *first, self.conv2.weight, self.conv2.bias, self.hard[-2], self.conv3.weight, self.conv3.bias,
            self.hard[-1], self.stride, self.shortcut, dispatch.current(self.backend),
        )  # fmt: skip

    @property
    def mask(self) -> Tensor:
        """Where it computed in the last forward pass, (N, 1, h, w)."""
        return self.seen[0]

    def counted(self, hard: bool = False) -> list[tuple[int, Tensor]]:
        """(multiply-adds with everything kept, share executed) of each convolution in the last forward pass.

        For one picture; shares are differentiable while masks are learnt. hard: of the hard masks in their place.
        """
        soft_mask, hard_mask, soft, sure, size = self.seen
        mask, shares = (hard_mask, sure) if hard else (soft_mask, soft)
        shares = [one.to(torch.float32) for one in shares]
        kept, (h, w) = mask.to(torch.float32).mean(), mask.shape[-2:]
        found, before = [], None
        if self.expand:
            wide = kept if self.stride == 1 else spread(mask, size).to(torch.float32).mean()
            before = shares.pop(0)
            found.append((self.conv1.weight.numel() * size[0] * size[1], _executed(before.mean(), wide)))
        both = shares[0] if before is None else before * shares[0]
        found.append((self.conv2.weight.numel() * h * w, _executed(both.mean(), kept)))
        found.append((self.conv3.weight.numel() * h * w, _executed(shares[0].mean() * shares[1].mean(), kept)))
        return found

    def overhead(self) -> int:
        """Multiply-adds of the mask branch in the last forward pass, for one picture."""
        return self.locate.multiply_adds(*self.seen[-1])


def _split(
    x: Tensor, dense: Tensor | None, run: Callable[[Tensor], Tensor] = lambda part: part
) -> tuple[Tensor, Tensor | None]:
    """What a layer makes of its dense and of its sparse inputs; None where there are none, as far as can be seen."""
    if dense is None:
        return run(x), None
    share = dense.to(x.dtype).view(1, -1, 1, 1)
    if not share.requires_grad and bool((share == 1).all()):
        return run(x), None
    return run(x * share), run(x * (1 - share))


def _executed(everywhere: Tensor, kept: Tensor) -> Tensor:
    """Share of a layer's multiply-adds: what is dense on both sides everywhere, the rest where it is kept."""
    return everywhere + (1 - everywhere) * kept
