"""SMStereo's sparse mask module: an hourglass of 3-D convolutions under masks at three sizes (TPAMI 2022)."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.ops import dispatch
from sparsemask.ops.add_relu import add_relu
from sparsemask.ops.geometry import Geometry
from sparsemask.spaces.smstereo.layers import ConvNorm, activate, convolve, fold, folded
from sparsemask.spaces.sparse_conv.masked_network import MaskModule, begin_smoothly
from sparsemask.sparse import gumbel_mask, kept_fraction
from sparsemask.sparse.training_form import masked_conv


class MaskedConv(nn.Sequential):
    """A convolution and its batch norm with a channel mask: dense channels at all voxels, sparse ones at kept voxels.

    The parameter `ch_mask` (1, C_out, 2) holds two logits a channel, index 0 dense, initialised U(0, 1). Submodules are
    nested as in GwcNet's hourglass: (convolution, norm) and ReLU with a ReLU, else convolution and norm.

    Args:
        inputs: input channels.
        outputs: output channels.
        stride: of a plain convolution.
        transposed: transposed convolution of stride 2.
        relu: whether a ReLU follows.
    """

    mask_mode = "soft"  # see :func:`sparsemask.sparse.set_mask_mode`
    backend = "auto"  # see :func:`sparsemask.sparse.set_backend`
    planned: str | None = None  # the backend in place of "auto", where one was chosen for the whole network

    def __init__(self, inputs: int, outputs: int, stride: int = 1, transposed: bool = False, relu: bool = True):
        layer = ConvNorm(inputs, outputs, 3, stride, transposed=transposed)
        super().__init__(*([layer, nn.ReLU()] if relu else layer))
        self.relu, self.stride, self.outputs = relu, stride, outputs
        self.ch_mask = nn.Parameter(torch.rand(1, outputs, 2))
        self.geometry = Geometry.of(3, 3, 2, 1, 1, 1, transposed=True) if transposed else Geometry.of(3, 3, stride, 1)

    @property
    def pair(self) -> tuple[nn.Module, nn.Module]:
        """The convolution and its norm."""
        conv, norm = self[0] if self.relu else self
        return conv, norm

    def mask_parameters(self) -> Iterator[nn.Parameter]:
        """What :func:`sparsemask.sparse.set_mask_mode` freezes."""
        yield self.ch_mask

    def dense(self, tau: float, noise: bool) -> Tensor:
        """Dense shares (C_out,): soft while masks are learnt, else bool; ties are dense."""
        if self.training and self.mask_mode == "soft":
            return gumbel_mask(self.ch_mask, tau, 2, noise)[0, :, 0]
        return self.ch_mask[0, :, 0] >= self.ch_mask[0, :, 1]

    def forward(
        self, x: Tensor, mask: Tensor, before: Tensor | None, dense: Tensor, ins: Tensor | None = None,
        outs: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The masked convolution of x (N, C_in, D, H, W).

        Args:
            x: features.
            mask: (N, 1, *) on the output's grid, soft or bool.
            before: which channels of x are dense, (C_in,), soft or bool; None: all.
            dense: which output channels are dense, (C_out,).
            ins: permutation of x's channels, in evaluation without gradients; None: the layer's order. `before` is in
                the layer's order.
            outs: permutation of the output's channels; likewise.
        """
        activation = "relu" if self.relu else "none"
        conv, norm = self.pair
        if self.training or mask.is_floating_point():
            return masked_conv(x, conv.weight, None, mask, before, dense, self.geometry, activation, norm)
        weight, bias = fold(conv, norm) if torch.is_grad_enabled() else folded(conv, norm, ins, outs)
        g = self.geometry
        before = torch.ones(x.shape[1], dtype=torch.bool, device=x.device) if before is None else before
        before, dense = (flags if order is None else flags[order] for flags, order in ((before, ins), (dense, outs)))
        return torch.ops.sparsemask.conv(
            x, weight, bias, mask, before, dense, g.stride, g.padding, g.dilation, g.output_padding, g.transposed, 1,
            activation, dispatch.current(self.backend, self.planned, x),
        )  # fmt: skip

    def everything(self, x: Tensor) -> Tensor:
        """The plain convolution, without masks."""
        conv, norm = self.pair
        y = norm(conv(x)) if torch.is_grad_enabled() else convolve(conv, x, *folded(conv, norm))
        return activate(y) if self.relu else y


class VolumeMask(nn.Sequential):
    """The mask branch of voxels: a light hourglass at half the size; logits (N, 2, D, H, W)."""

    mask_mode = "soft"  # see :func:`sparsemask.sparse.set_mask_mode`
    backend = "auto"  # see :func:`sparsemask.sparse.set_backend`
    planned: str | None = None  # the backend in place of "auto", where one was chosen for the whole network

    def __init__(self, channels: int, narrow: int = 8):
        up = nn.ConvTranspose3d(narrow, 2, 3, 2, 1, output_padding=1)
        super().__init__(
            nn.AvgPool3d(2), nn.Conv3d(channels, narrow, 3, 1, 1), nn.ReLU(), nn.Conv3d(narrow, narrow, 3, 1, 1),
            nn.ReLU(), up,
        )  # fmt: skip
        begin_smoothly(up)
        self.threshold = 0.5

    def mask_parameters(self) -> Iterator[nn.Parameter]:
        """What :func:`sparsemask.sparse.set_mask_mode` freezes."""
        yield from self.parameters()

    def forward(self, x: Tensor) -> Tensor:
        """As :meth:`logits`."""
        return self.logits(x)

    def logits(self, x: Tensor) -> Tensor:
        """Features (N, C, D, H, W), even sizes, to logits; index 1 keeps."""
        if self.training or torch.is_grad_enabled():
            return super().forward(x)
        _, first, _, second, _, up = self
        pooled = x  # the mean of eight by pairwise sums: torch's pooling is slow for channels last
        for dim in (2, 3, 4):
            before, after = pooled.unflatten(dim, (-1, 2)).unbind(dim + 1)
            pooled = before + after
        pooled = pooled.mul_(0.125)
        everything_kept = pooled.new_ones((len(x), 1, *pooled.shape[2:]), dtype=torch.bool)
        # By the sparse operator with everything kept: faster than torch's 3-D convolution for channels last.
        features = self._everywhere(second, self._everywhere(first, pooled, everything_kept), everything_kept)
        return up(features)

    def _everywhere(self, conv: nn.Conv3d, x: Tensor, everything_kept: Tensor) -> Tensor:
        dense = [torch.ones(n, dtype=torch.bool, device=x.device) for n in (conv.in_channels, conv.out_channels)]
        g = (conv.stride, conv.padding, conv.dilation, (0, 0, 0), False, 1)
        return torch.ops.sparsemask.conv(
            x,
            conv.weight,
            conv.bias,
            everything_kept,
            *dense,
            *g,
            "relu",
            dispatch.current(self.backend, self.planned, x),
        )

    def harden(self, logits: Tensor) -> Tensor:
        """Bool (N, 1, D, H, W): P(keep) above the threshold; at 0.5 the argmax."""
        drop, keep = logits.detach().split(1, 1)
        return keep > drop if self.threshold == 0.5 else torch.sigmoid(keep - drop) > self.threshold


_LEVELS = (1, 1, 2, 2, 1, 0)  # of the six convolutions' outputs: how often their size is halved


class SparseHourglass(MaskModule):
    """Six sparse mask convolutions down to a quarter of the size and back, with two skip connections.

    A voxel of a coarser mask is kept if any of the finer ones in it is.
    """

    def __init__(self, channels: int = 32):
        super().__init__()
        c = channels
        self.conv1 = MaskedConv(c, 2 * c, stride=2)
        self.conv2 = MaskedConv(2 * c, 2 * c)
        self.conv3 = MaskedConv(2 * c, 4 * c, stride=2)
        self.conv4 = MaskedConv(4 * c, 4 * c)
        self.conv5 = MaskedConv(4 * c, 2 * c, transposed=True, relu=False)
        self.conv6 = MaskedConv(2 * c, c, transposed=True, relu=False)
        self.redir1 = ConvNorm(c, c, 1)
        self.redir2 = ConvNorm(2 * c, 2 * c, 1)
        self.locate = VolumeMask(c)

    @property
    def convs(self) -> list[MaskedConv]:
        """The six, in order."""
        return [self.conv1, self.conv2, self.conv3, self.conv4, self.conv5, self.conv6]

    def channel_parameters(self) -> list[nn.Parameter]:
        """Of the six convolutions, (1, C, 2)."""
        return [conv.ch_mask for conv in self.convs]

    def branch(self) -> VolumeMask:
        """The mask branch."""
        return self.locate

    def branch_end(self) -> tuple[Tensor, Tensor | None]:
        """The transposed convolution."""
        return self.locate[-1].weight, self.locate[-1].bias

    def forward(self, x: Tensor, tau: float = 1.0, noise: bool = True):
        """(N, C, D, H, W), sizes multiples of 4, to (the same, kept fractions, those of hard masks, hard masks)."""
        constant = self.constant_mask()
        if constant is not None:
            return self._constant(x, constant)
        logits = self.locate(x)
        hard = self.locate.harden(logits)
        fine = hard
        if self.training and self.locate.mask_mode == "soft":
            fine = gumbel_mask(logits, tau, 1, noise)[:, 1:]
        masks, hards = _sizes(fine), _sizes(hard)
        levels = _LEVELS
        dense = [conv.dense(tau, noise) for conv in self.convs]
        out = self._run(x, masks, dense)
        kept = [
            kept_fraction(masks[level], layer_dense[None]) for level, layer_dense in zip(levels, dense, strict=True)
        ]
        hard_kept = kept
        if self.training:
            hard_dense = [conv.ch_mask[0, :, 0].detach() >= conv.ch_mask[0, :, 1].detach() for conv in self.convs]
            hard_kept = [
                kept_fraction(hards[level], layer_dense[None])
                for level, layer_dense in zip(levels, hard_dense, strict=True)
            ]
        return out, kept, hard_kept, [hards[level] for level in levels]

    def _constant(self, x: Tensor, constant: bool):
        """As :meth:`forward` under one mask for all inputs."""
        sizes = ([n >> level for n in x.shape[2:]] for level in range(3))
        masks = [x.new_full((len(x), 1, *size), constant, dtype=torch.bool) for size in sizes]
        dense = [conv.dense(1.0, False) for conv in self.convs]
        out = self.everything(x) if constant else self._skip(x, masks, dense)
        kept = [(flags.float().mean() if not constant else x.new_ones(()))[None] for flags in dense]
        return out, kept, kept, [masks[level] for level in _LEVELS]

    def _run(self, x: Tensor, masks: list[Tensor], dense: list[Tensor]) -> Tensor:
        half, quarter = masks[1:]
        if not (self.training or torch.is_grad_enabled() or half.is_floating_point()):
            return self._skip(x, masks, dense)
        x1 = self.conv1(x, half, None, dense[0])
        x2 = self.conv2(x1, half, dense[0], dense[1])
        del x1
        x4 = self.conv4(self.conv3(x2, quarter, dense[1], dense[2]), quarter, dense[2], dense[3])
        x5 = F.relu(self.conv5(x4, half, dense[3], dense[4]) + self.redir2(x2))
        del x2, x4
        # The skip connection has values at dropped voxels: its sparse channels are dropped there too.
        x5 = x5 * _gate(half, dense[4], x5)
        return F.relu(self.conv6(x5, masks[0], dense[4], dense[5]) + self.redir1(x))

    def _skip(self, x: Tensor, masks: list[Tensor], dense: list[Tensor]) -> Tensor:
        """As :meth:`_run` in evaluation; intermediate features hold their dense channels first, contiguously."""
        half, quarter = masks[1:]
        order1, order2, order3, order4, order5 = (torch.argsort(~flags, stable=True) for flags in dense[:5])
        x1 = self.conv1(x, half, None, dense[0], None, order1)
        x2 = self.conv2(x1, half, dense[0], dense[1], order1, order2)
        del x1
        x4 = self.conv3(x2, quarter, dense[1], dense[2], order2, order3)
        x4 = self.conv4(x4, quarter, dense[2], dense[3], order3, order4)
        x5 = self.conv5(x4, half, dense[3], dense[4], order4, order5)
        x5 = add_relu(x5, self.redir2(x2, order2, order5), half, dense[4][order5])
        del x2, x4
        return add_relu(self.conv6(x5, masks[0], dense[4], dense[5], order5), self.redir1(x))

    def everything(self, x: Tensor) -> Tensor:
        """The hourglass without masks."""
        x1 = self.conv1.everything(x)
        x2 = self.conv2.everything(x1)
        del x1
        x4 = self.conv4.everything(self.conv3.everything(x2))
        x5 = add_relu(self.conv5.everything(x4), self.redir2(x2))
        return add_relu(self.conv6.everything(x5), self.redir1(x))


def _gate(mask: Tensor, dense: Tensor, like: Tensor) -> Tensor:
    """1 in dense channels and at kept voxels, 0 elsewhere; soft masks likewise."""
    mask, dense = mask.to(like.dtype), dense.to(like.dtype).view(1, -1, 1, 1, 1)
    return dense + (1 - dense) * mask


def _sizes(fine: Tensor) -> list[Tensor]:
    """The mask at full, half and quarter size."""
    sizes = [fine]
    for _ in range(2):
        finer = sizes[-1]
        coarse = F.max_pool3d(finer if finer.is_floating_point() else finer.float(), 2)
        sizes.append(coarse if finer.is_floating_point() else coarse > 0)
    return sizes
