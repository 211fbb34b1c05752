"""Layers of SMStereo under the names of GwcNet's public checkpoints (Guo et al., CVPR 2019, arXiv 1903.04025)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.ops import dispatch
from sparsemask.ops.concat_conv import joined_conv, keeps_size
from sparsemask.ops.weight_cache import Derived, last

_folded = Derived()


class ConvNorm(nn.Sequential):
    """A convolution without bias and its batch norm; in evaluation one convolution.

    Args:
        inputs: input channels.
        outputs: output channels.
        kernel: kernel size.
        stride: of a plain convolution.
        dilation: of a plain convolution.
        dims: 2 or 3.
        transposed: transposed convolution of stride 2, which doubles the size.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1, dims: int = 3,
        transposed: bool = False,
    ):  # fmt: skip
        conv, conv_transpose, norm = (
            (nn.Conv2d, nn.ConvTranspose2d, nn.BatchNorm2d),
            (nn.Conv3d, nn.ConvTranspose3d, nn.BatchNorm3d),
        )[dims - 2]
        if transposed:
            layer = conv_transpose(inputs, outputs, kernel, 2, 1, output_padding=1, bias=False)
        else:
            layer = conv(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, bias=False)
        super().__init__(layer, norm(outputs))

    def forward(self, x: Tensor, ins: Tensor | None = None, outs: Tensor | None = None) -> Tensor:
        """(N, C_in, *spatial) to (N, C_out, *spatial); ins, outs: orders of the channels, in evaluation."""
        if self.training or torch.is_grad_enabled():
            return super().forward(x)
        return convolve(self[0], x, *folded(*self, ins, outs))


def folded(
    conv: nn.Module, norm: nn.Module, ins: Tensor | None = None, outs: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with its batch norm (in evaluation) folded in; cached until these change.

    Args:
        conv: the convolution.
        norm: its batch norm.
        ins: permutation of the input channels, int64 (C_in,), or None.
        outs: permutation of the output channels, int64 (C_out,), or None.
    """
    sources = [t.detach() for t in (conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var)]
    orders = [order for order in (ins, outs) if order is not None]
    key = (norm.eps, ins is None, outs is None)
    return _folded.get(sources + orders, lambda: tuple(map(last, _ordered(conv, *fold(conv, norm), ins, outs))), key)


def _ordered(conv: nn.Module, weight: Tensor, bias: Tensor, ins: Tensor | None, outs: Tensor | None):
    transposed = isinstance(conv, nn.ConvTranspose2d | nn.ConvTranspose3d)
    form = torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
    if outs is not None:
        weight, bias = weight.index_select(1 if transposed else 0, outs), bias[outs]
    if ins is not None:
        weight = weight.index_select(0 if transposed else 1, ins)
    return weight.contiguous(memory_format=form), bias


def fold(conv: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """As :func:`folded`, without cache and permutations, differentiable."""
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    along = (1, -1) if isinstance(conv, nn.ConvTranspose2d | nn.ConvTranspose3d) else (-1, 1)
    weight = conv.weight * scale.view(*along, *[1] * (conv.weight.ndim - 2))
    last = torch.channels_last if weight.ndim == 4 else torch.channels_last_3d
    return weight.contiguous(memory_format=last), norm.bias - norm.running_mean * scale


def convolve(conv: nn.Module, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Convolve with other weights by the geometry of a convolution module."""
    dims = weight.ndim - 2
    if isinstance(conv, nn.ConvTranspose2d | nn.ConvTranspose3d):
        run = F.conv_transpose2d if dims == 2 else F.conv_transpose3d
        return run(x, weight, bias, conv.stride, conv.padding, conv.output_padding, 1, conv.dilation)
    if dims == 3 and max(weight.shape[2:]) == 1 and conv.stride == (1, 1, 1):
        # As a matrix product: torch's 3-D convolution is slow on a single thread.
        return F.linear(x.movedim(1, -1), weight.flatten(1), bias).movedim(-1, 1)
    if keeps_size(conv) and not torch.is_grad_enabled() and dispatch.beats_dense(weight, x):
        return joined_conv([x], weight, bias)
    run = F.conv2d if dims == 2 else F.conv3d
    return run(x, weight, bias, conv.stride, conv.padding, conv.dilation)


def activate(x: Tensor) -> Tensor:
    """ReLU, in place without gradients."""
    return F.relu(x) if torch.is_grad_enabled() else x.relu_()


class ConvNormRelu(nn.Sequential):
    """A :class:`ConvNorm` and a ReLU."""

    def __init__(self, *arguments, **options):
        super().__init__(ConvNorm(*arguments, **options), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, *spatial) to (N, C_out, *spatial)."""
        return activate(self[0](x))


class Residual(nn.Module):
    """Two 3×3 convolutions with ReLU after the first, and the input, by a 1×1 convolution where shapes differ."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.conv1 = ConvNormRelu(inputs, outputs, 3, stride, dilation, dims=2)
        self.conv2 = ConvNorm(outputs, outputs, 3, 1, dilation, dims=2)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            self.downsample = ConvNorm(inputs, outputs, 1, stride, dims=2)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) to (N, C_out, H', W')."""
        y = self.conv2(self.conv1(x))
        x = x if self.downsample is None else self.downsample(x)
        return y + x if torch.is_grad_enabled() else y.add_(x)


class Encoder(nn.Module):
    """The encoder of both images: 320 channels for the correlation at a quarter of the size.

    Args:
        concat: channels for an additional concatenation volume; 0: none.
    """

    def __init__(self, concat: int = 0):
        super().__init__()
        parts: list[nn.Module] = []
        for inputs, stride in ((3, 2), (32, 1), (32, 1)):
            parts += [ConvNorm(inputs, 32, 3, stride, dims=2), nn.ReLU()]
        self.firstconv = nn.Sequential(*parts)
        self.layer1 = _stage(32, 32, 3)
        self.layer2 = _stage(32, 64, 16, stride=2)
        self.layer3 = _stage(64, 128, 3)
        self.layer4 = _stage(128, 128, 3, dilation=2)
        self.lastconv = None
        if concat:
            self.lastconv = nn.Sequential(
                ConvNorm(320, 128, 3, dims=2), nn.ReLU(), nn.Conv2d(128, concat, 1, bias=False)
            )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Images (N, 3, H, W) to features (N, 320, H/4, W/4) and those of the concatenation, or None."""
        for number in (0, 2, 4):
            x = activate(self.firstconv[number](x))
        x = self.layer2(self.layer1(x))
        deeper = self.layer3(x)
        features = torch.cat([x, deeper, self.layer4(deeper)], 1)
        return features, None if self.lastconv is None else self.lastconv(features)


def _stage(inputs: int, outputs: int, blocks: int, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    first = Residual(inputs, outputs, stride, dilation)
    return nn.Sequential(first, *(Residual(outputs, outputs, 1, dilation) for _ in range(blocks - 1)))
