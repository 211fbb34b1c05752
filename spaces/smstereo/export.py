"""Export of SMStereo: batch norms folded; with the sparse operators, or with masks that multiply.

Both forms reuse the network's modules and replace those that fold themselves at run time by folded layers.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.exporting import Exportable, channels_last, pure
from sparsemask.ops.add_relu import add_relu
from sparsemask.spaces.smstereo.export_volumes import OpenConv, PlainConv, plain_volume, shifted
from sparsemask.spaces.smstereo.layers import ConvNorm, convolve, fold
from sparsemask.spaces.smstereo.mask_module import MaskedConv, SparseHourglass, _sizes
from sparsemask.spaces.smstereo.network import SIZE, SMStereo
from sparsemask.tasks.stereo.batch import StereoPair


def exportable(space, network: SMStereo, pair: StereoPair) -> Exportable:
    """Describe the network as a function from a left and a right image (1, 3, H, W) to disparities (1, H, W).

    Args:
        space: the network's space.
        network: in evaluation mode, on the CPU; its masks are exported hard.
        pair: ignored; H and W are any multiples of 16.
    """
    height, width = (torch.export.Dim(name, min=2, max=1 << 10) for name in ("sixteenths_high", "sixteenths_wide"))
    sizes = {2: SIZE * height, 3: SIZE * width}
    example = torch.zeros(1, 3, 4 * SIZE, 6 * SIZE)
    return Exportable(
        network=network,
        fast=network,
        save=lambda path: space.save(path, network, space.masks_of(network)),
        program=pure(_skipping(network), lambda net, *pictures: net(*map(channels_last, pictures))),
        plain=pure(_Plain(network), lambda net, *pictures: net(*pictures)),
        inputs={"left": example, "right": example.clone()},
        outputs=("disparity",),
        dynamic=(sizes, sizes),
        tensors=lambda batch: (batch.left, batch.right),
        dense=pure(_Plain(network, _OpenHourglass), lambda net, *pictures: net(*pictures)),
    )


class _Folded(nn.Module):
    """A convolution with its batch norm folded in, computed by `run`."""

    def __init__(self, conv: nn.Module, norm: nn.Module, run=None):
        super().__init__()
        weight, bias = fold(conv, norm)
        self.weight, self.bias = nn.Parameter(weight.detach(), False), nn.Parameter(bias.detach(), False)
        self.conv = conv.to("meta")  # for its geometry
        self.run = run or convolve
        del self.conv.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self.conv, x, self.weight, self.bias)


class _Hourglass(nn.Module):
    """Base of folded hourglasses: the mask branch, the skip convolutions and the dense channels of each layer."""

    @torch.no_grad()
    def __init__(self, module: SparseHourglass):
        super().__init__()
        self.locate = module.locate
        self.redir1, self.redir2 = (_Folded(*layer) for layer in (module.redir1, module.redir2))
        self.flags = [conv.dense(1.0, False).clone() for conv in module.convs]


class _SkippingHourglass(_Hourglass):
    """An hourglass of sparse operators; intermediate features hold their dense channels first."""

    @torch.no_grad()
    def __init__(self, module: SparseHourglass):
        super().__init__(module)
        orders = [torch.argsort(~tensor, stable=True) for tensor in self.flags[:5]]
        self.weights = nn.ParameterList()
        self.convs = []
        ends = zip([None, *orders], [*orders, None], strict=True)
        before = torch.ones(module.conv1.pair[0].in_channels, dtype=torch.bool)
        for number, (conv, (ins, outs), dense) in enumerate(zip(module.convs, ends, self.flags, strict=True)):
            weight, bias = _ordered(conv, ins, outs)
            dense = dense if outs is None else dense[outs]
            self.weights.extend(nn.Parameter(tensor, False) for tensor in (weight, bias))
            for name, flags in (("before", before), ("own", dense)):
                self.register_buffer(f"{name}{number}", flags.clone())
            self.convs.append((conv.geometry, "relu" if conv.relu else "none"))
            before = dense
        order2, order5 = orders[1], orders[4]
        shape = self.redir2.weight.shape
        self.redir2.weight.data = self.redir2.weight.data[order5][:, order2].reshape(shape)
        self.redir2.bias.data = self.redir2.bias.data[order5]

    def _conv(self, number: int, x: Tensor, mask: Tensor) -> Tensor:
        g, activation = self.convs[number]
        return torch.ops.sparsemask.conv(
            x, self.weights[2 * number], self.weights[2 * number + 1], mask, self.get_buffer(f"before{number}"),
            self.get_buffer(f"own{number}"), g.stride, g.padding, g.dilation, g.output_padding, g.transposed, 1,
            activation, "auto",
        )  # fmt: skip

    def forward(self, x: Tensor, tau: float = 1.0, noise: bool = False):
        fine, half, quarter = _sizes(self.locate.harden(self.locate.logits(x)))
        two = self._conv(1, self._conv(0, x, half), half)
        four = self._conv(3, self._conv(2, two, quarter), quarter)
        five = add_relu(self._conv(4, four, half), self.redir2(two), half, self.own4)
        return add_relu(self._conv(5, five, fine), self.redir1(x)), [], [], []


class _PlainHourglass(_Hourglass):
    """An hourglass whose masks multiply."""

    @torch.no_grad()
    def __init__(self, module: SparseHourglass):
        super().__init__(module)
        reads = [None, *self.flags[:-1]]
        self.convs = nn.ModuleList(
            PlainConv(conv, before, dense) for conv, before, dense in zip(module.convs, reads, self.flags, strict=True)
        )
        self.register_buffer("dense", self.flags[4].to(torch.float32).view(1, -1, 1, 1, 1))

    def forward(self, x: Tensor, tau: float = 1.0, noise: bool = False):
        logits = nn.Sequential.forward(self.locate, x)
        fine, half, quarter = (mask.to(x.dtype) for mask in _sizes(self.locate.harden(logits)))
        conv1, conv2, conv3, conv4, conv5, conv6 = self.convs
        middle = conv2(conv1(x, half), half)
        y = conv4(conv3(middle, quarter), quarter)
        y = F.relu(conv5(y, half) + self.redir2(middle)) * torch.maximum(half, self.dense)
        return F.relu(conv6(y, fine) + self.redir1(x)), [], [], []


class _OpenHourglass(nn.Module):
    """An hourglass without masks."""

    @torch.no_grad()
    def __init__(self, module: SparseHourglass):
        super().__init__()
        self.redir1, self.redir2 = (_Folded(*layer) for layer in (module.redir1, module.redir2))
        self.convs = nn.ModuleList(map(OpenConv, module.convs))

    def forward(self, x: Tensor, tau: float = 1.0, noise: bool = False):
        conv1, conv2, conv3, conv4, conv5, conv6 = self.convs
        middle = conv2(conv1(x))
        y = F.relu(conv5(conv4(conv3(middle))) + self.redir2(middle))
        return F.relu(conv6(y) + self.redir1(x)), [], [], []


class _Plain(nn.Module):
    """The network made of standard operators, with a kind of hourglasses."""

    def __init__(self, network: SMStereo, hourglass: type = _PlainHourglass):
        super().__init__()
        self.network = _with(network, hourglass, run=_plain_convolve)
        maxdisp = network.maxdisp
        mix = F.interpolate(torch.eye(maxdisp // 4)[None], maxdisp, mode="linear", align_corners=False)[0]
        self.register_buffer("mix", mix.t().reshape(maxdisp, -1, 1, 1).contiguous())
        self.register_buffer("values", torch.arange(float(maxdisp)).view(1, -1, 1, 1))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Images (1, 3, H, W) to disparities (1, H, W)."""
        net = self.network
        (left_features, left_concat), (right_features, right_concat) = (
            net.feature_extraction(left),
            net.feature_extraction(right),
        )
        volume = plain_volume(left_features, right_features, net.maxdisp // 4, net.groups)
        if left_concat is not None:
            pairs = [
                torch.cat([left_part, right_part], 1)
                for left_part, right_part in shifted(left_concat, right_concat, net.maxdisp // 4)
            ]
            volume = torch.cat([volume, torch.stack(pairs, 2)], 1)
        x = net.aggregate(volume)
        for module in net.hourglasses:
            x = module(x)[0]
        cost = net.classif3[2](F.relu(net.classif3[0](x)))[:, 0]
        cost = F.interpolate(cost, left.shape[-2:], mode="bilinear", align_corners=False)
        return (F.softmax(F.conv2d(cost, self.mix), 1) * self.values).sum(1)


def _skipping(network: SMStereo) -> nn.Module:
    return _Skipping(_with(network, _SkippingHourglass))


class _Skipping(nn.Module):
    def __init__(self, network: SMStereo):
        super().__init__()
        self.network = network

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.network.compute(left, right)[0][-1]


@torch.no_grad()
def _with(network: SMStereo, hourglass: type, run=None) -> SMStereo:
    """A copy with other hourglasses, all other layers folded, without the heads used only in training."""
    copied = copy.deepcopy(network).eval()
    for name in ("dres2", "dres3", "dres4"):
        copied.set_submodule(name, hourglass(copied.get_submodule(name)))
    for name in ("classif0", "classif1", "classif2"):
        copied.set_submodule(name, nn.Identity())
    for name, module in list(copied.named_modules()):
        if isinstance(module, ConvNorm):
            copied.set_submodule(name, _Folded(*module, run=run))
    return copied.requires_grad_(False)


def _plain_convolve(conv: nn.Module, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    run = F.conv2d if weight.ndim == 4 else F.conv3d
    return run(x, weight, bias, conv.stride, conv.padding, conv.dilation)


def _ordered(conv: MaskedConv, ins: Tensor | None, outs: Tensor | None) -> tuple[Tensor, Tensor]:
    """Folded weight and bias, channels permuted by `ins` and `outs`."""
    weight, bias = fold(*conv.pair)
    rows = 1 if conv.pair[0].transposed else 0
    if outs is not None:
        weight, bias = weight.index_select(rows, outs), bias[outs]
    if ins is not None:
        weight = weight.index_select(1 - rows, ins)
    return channels_last(weight), bias
