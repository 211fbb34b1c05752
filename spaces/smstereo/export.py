"""SMStereo for other programs: batch norms folded; with the sparse operators, or masks that multiply.

Both forms take the network's modules over and put folded layers in the place of those that fold themselves while they
run, which no file can hold.
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.exporting import Exportable, channels_last, pure
from sparsemask.ops.add_relu import add_relu
from sparsemask.spaces.smstereo.export_volumes import PlainConv, plain_volume, shifted
from sparsemask.spaces.smstereo.layers import ConvNorm, convolve, fold
from sparsemask.spaces.smstereo.mask_module import MaskedConv, SparseHourglass, _sizes
from sparsemask.spaces.smstereo.network import SIZE, SMStereo
from sparsemask.stereo.batch import StereoPair


def exportable(space, network: SMStereo, pair: StereoPair) -> Exportable:
    """As a function from a left and a right picture (1, 3, H, W), any multiples of 16, to disparities (1, H, W).

    network: in evaluation mode, on the CPU; its masks are exported hard.
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
    )


class _Folded(nn.Module):
    """A convolution with its batch norm in it, in the manner of `run`."""

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
    """What a folded hourglass has: its convolutions, their dense channels, and the mask branch."""

    @torch.no_grad()
    def __init__(self, module: SparseHourglass):
        super().__init__()
        self.locate = module.locate
        self.redir1, self.redir2 = (_Folded(*one) for one in (module.redir1, module.redir2))
        self.flags = [conv.dense(1.0, False).clone() for conv in module.convs]


class _SkippingHourglass(_Hourglass):
    """By the sparse operator; between its ends features hold their dense channels first."""

    @torch.no_grad()
    def __init__(self, module: SparseHourglass):
        super().__init__(module)
        orders = [torch.argsort(~one, stable=True) for one in self.flags[:5]]
        self.weights = nn.ParameterList()
        self.convs = []
        ends = zip([None, *orders], [*orders, None], strict=True)
        before = torch.ones(module.conv1.pair[0].in_channels, dtype=torch.bool)
        for number, (conv, (ins, outs), own) in enumerate(zip(module.convs, ends, self.flags, strict=True)):
            weight, bias = _ordered(conv, ins, outs)
            own = own if outs is None else own[outs]
            self.weights.extend(nn.Parameter(one, False) for one in (weight, bias))
            for name, flags in (("before", before), ("own", own)):
                self.register_buffer(f"{name}{number}", flags.clone())
            self.convs.append((conv.geometry, "relu" if conv.relu else "none"))
            before = own
        two, five = orders[1], orders[4]
        shape = self.redir2.weight.shape
        self.redir2.weight.data = self.redir2.weight.data[five][:, two].reshape(shape)
        self.redir2.bias.data = self.redir2.bias.data[five]

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
    """By masks that multiply."""

    @torch.no_grad()
    def __init__(self, module: SparseHourglass):
        super().__init__(module)
        reads = [None, *self.flags[:-1]]
        self.convs = nn.ModuleList(
            PlainConv(conv, before, own) for conv, before, own in zip(module.convs, reads, self.flags, strict=True)
        )
        self.register_buffer("dense", self.flags[4].to(torch.float32).view(1, -1, 1, 1, 1))

    def forward(self, x: Tensor, tau: float = 1.0, noise: bool = False):
        logits = nn.Sequential.forward(self.locate, x)
        fine, half, quarter = (one.to(x.dtype) for one in _sizes(self.locate.harden(logits)))
        one, two, three, four, five, six = self.convs
        middle = two(one(x, half), half)
        y = four(three(middle, quarter), quarter)
        y = F.relu(five(y, half) + self.redir2(middle)) * torch.maximum(half, self.dense)
        return F.relu(six(y, fine) + self.redir1(x)), [], [], []


class _Plain(nn.Module):
    """The network of operators that every framework has."""

    def __init__(self, network: SMStereo):
        super().__init__()
        self.network = _with(network, _PlainHourglass, run=_plain_convolve)
        maxdisp = network.maxdisp
        mix = F.interpolate(torch.eye(maxdisp // 4)[None], maxdisp, mode="linear", align_corners=False)[0]
        self.register_buffer("mix", mix.t().reshape(maxdisp, -1, 1, 1).contiguous())
        self.register_buffer("values", torch.arange(float(maxdisp)).view(1, -1, 1, 1))

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Pictures (1, 3, H, W) to disparities (1, H, W)."""
        net = self.network
        (a, more_a), (b, more_b) = net.feature_extraction(left), net.feature_extraction(right)
        volume = plain_volume(a, b, net.maxdisp // 4, net.groups)
        if more_a is not None:
            both = [torch.cat([one, other], 1) for one, other in shifted(more_a, more_b, net.maxdisp // 4)]
            volume = torch.cat([volume, torch.stack(both, 2)], 1)
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
    """A copy with other hourglasses, its other layers folded; the heads that only training has are gone."""
    made = copy.deepcopy(network).eval()
    for name in ("dres2", "dres3", "dres4"):
        made.set_submodule(name, hourglass(made.get_submodule(name)))
    for name in ("classif0", "classif1", "classif2"):
        made.set_submodule(name, nn.Identity())
    for name, module in list(made.named_modules()):
        if isinstance(module, ConvNorm):
            made.set_submodule(name, _Folded(*module, run=run))
    return made.requires_grad_(False)


def _plain_convolve(conv: nn.Module, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    run = F.conv2d if weight.ndim == 4 else F.conv3d
    return run(x, weight, bias, conv.stride, conv.padding, conv.dilation)


def _ordered(conv: MaskedConv, ins: Tensor | None, outs: Tensor | None) -> tuple[Tensor, Tensor]:
    """Folded weight and bias, their channels in other orders."""
    weight, bias = fold(*conv.pair)
    rows = 1 if conv.pair[0].transposed else 0
    if outs is not None:
        weight, bias = weight.index_select(rows, outs), bias[outs]
    if ins is not None:
        weight = weight.index_select(1 - rows, ins)
    return channels_last(weight), bias
