"""Specialised networks in standard operators, for ONNX: masks multiply, channels that are never kept are removed."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.masks import UP
from sparsemask.masks.decoder import DecoderMask
from sparsemask.spaces.connectivity.pruned_network import PrunedNetwork
from sparsemask.spaces.connectivity.search_network import decode
from sparsemask.spaces.sparse_conv.locator import Locator
from sparsemask.spaces.specialized.bottleneck import MaskedBottleneck
from sparsemask.spaces.specialized.channel_masked_bottleneck import NarrowBottleneck
from sparsemask.spaces.specialized.network import SpecializedNetwork


class PlainForm(nn.Module):
    """A copy of a network with hard masks that multiply, batch norms folded.

    Every convolution runs once, everywhere. Masks are omitted if all channels of a module are dense or if its mask
    branch always keeps every location. If the branch never keeps a location, the sparse channels are removed, as are
    channels dropped by a channel mask without a data mask.

    Args:
        network: not changed.
    """

    @torch.no_grad()
    def __init__(self, network: SpecializedNetwork):
        super().__init__()
        form = copy.deepcopy(network).eval()
        stages = {int(name.rpartition("_")[2]): module for name, module in form.stage_masks.items()}
        PrunedNetwork.fold(form)
        for name, block in list(form.backbone.named_modules()):
            if isinstance(block, (MaskedBottleneck, NarrowBottleneck)):
                plain = PlainBlock(block) if isinstance(block, MaskedBottleneck) else block.narrowed()
                form.backbone.set_submodule(name, plain)
        self.locate, self.dense, live = nn.ModuleDict(), nn.ParameterDict(), {}
        final, nothing = max(_reaching(form)), False
        for i in range(len(form.backbone.channels)):
            live[i] = torch.ones(form.stage_widths[i], dtype=torch.bool)
            if i in stages and stages[i].locate is None:  # a channel mask alone
                live[i] = stages[i].channels.some()[1]
            elif i in stages:
                dense, kept = stages[i].channels()[1][0], constant(stages[i].locate)
                if kept is False:
                    live[i] = dense if i < final else _some(dense)
                    nothing = i == final and not dense.any()
                elif kept is None and not dense.all():
                    self.locate[str(i)], self.dense[str(i)] = PlainLocator(stages[i].locate), _flags(dense)
        self.takers, self.products = {}, nn.ModuleDict()
        for (kind, j), takers in form._takers.items():
            takers = [i for i in takers if live[i].any()]
            read = live[j - 1] if kind == UP and j else None
            if takers and (read is None or read.any()):
                self._take(form, kind, j, takers, live, read)
        self.network, self.live = form, {i: int(flags.sum()) for i, flags in live.items()}
        self.classify = _conv(form.fc_conv, slice(None), live[final])
        if nothing:
            self.classify.weight.zero_()
        form.stage_masks, form.merged, form.fc_conv = nn.ModuleDict(), nn.ModuleDict(), nn.Identity()
        if not isinstance(form.mask, DecoderMask):  # whose stages do more than add
            form.decoders = nn.ModuleDict()
        form.scored = self.scored
        self.requires_grad_(False)

    def _take(self, form, kind: int, j: int, takers: list[int], live: dict, read: Tensor | None) -> None:
        """Build the convolution of one feature for the stages that read it, without removed channels."""
        all_takers = form._takers[kind, j]
        merged, widths = form.merged[f"{kind}_{j}"], [form.stage_widths[i] for i in all_takers]
        begins = dict(zip(all_takers, np.cumsum([0, *widths]).tolist(), strict=False))
        rows = torch.cat([begins[i] + live[i].nonzero()[:, 0] for i in takers])
        self.takers[kind, j] = takers
        self.products[f"{kind}_{j}"] = _conv(merged, rows, slice(None) if read is None else read)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> scores (B, classes, h, w) at the last stage's size, or larger images."""
        return self.network(x)

    def scored(self, x: Tensor, size=None) -> Tensor:
        """The classifier's output."""
        points = self.network.backbone(x)
        masks = {i: locate(F.relu6(points[int(i)])) for i, locate in self.locate.items()}

        def product(kind: int, j: int, feature: Tensor) -> Iterator[tuple[int, Tensor]]:
            takers = self.takers[kind, j]
            parts = self.products[f"{kind}_{j}"](feature).split([self.live[i] for i in takers], 1)
            yield from zip(takers, parts, strict=True)

        def finish(i: int, total: Tensor) -> Tensor:  # before relu6, which leaves zeros as they are
            return gate(total, self.dense[str(i)], masks[str(i)]) if str(i) in masks else total

        refine = self.network.refine if self.network.decoders else None
        return self.classify(decode(points, lambda kind, j: (kind, j) in self.takers, product, finish, refine))


class PlainBlock(nn.Module):
    """An inverted residual with hard masks; a depth-wise convolution reads zeros where its input was dropped.

    Args:
        block: its batch norms folded into its convolutions.
    """

    @torch.no_grad()
    def __init__(self, block: MaskedBottleneck):
        super().__init__()
        self.stride, self.shortcut = block.stride, block.shortcut
        hard = block.channels()[1]
        first, (middle, outs) = hard[0] if block.expand else None, hard[-2:]
        before = torch.ones_like(middle) if first is None else first
        kept = constant(block.locate)
        everything = kept is True or all(bool(flags.all()) for flags in hard)
        use = block.conv3.weight.abs().sum((0, 2, 3)) > 0
        bias, rows = block.conv3.bias, torch.ones_like(outs)
        if kept is False:
            # Dense outputs read dense inputs only; a dropped input leaves a bias, which is constant.
            constants = F.relu6(block.conv2.bias) * (middle & ~before)
            bias = (bias + block.conv3.weight[:, :, 0, 0] @ constants) * outs
            use, rows = use & middle & before, outs
        self.whole = everything or kept is False
        use = _some(use)
        self.reads = None
        self.conv1 = _conv(block.conv1, use, slice(None)) if block.expand else None
        if not block.expand and not use.all():
            self.reads = use.nonzero()[:, 0].tolist()
        self.conv2 = _depthwise(block.conv2, use)
        self.conv3 = _conv(block.conv3, slice(None), use)
        self.conv3.weight.mul_(rows.view(-1, 1, 1, 1))
        self.conv3.bias.copy_(bias)
        if self.whole:
            return
        before, middle = before[use], middle[use]
        self.locate = PlainLocator(block.locate)
        self.dense = nn.ParameterDict({"middle": _flags(middle), "outs": _flags(outs)})
        if first is not None and not before.all():
            self.dense["before"] = _flags(before)
        if (middle & ~before).any():  # dense outputs of sparse inputs, which count at kept locations only
            self.dense["across"] = _flags(~middle | before)
            self.bias, self.conv2.bias = self.conv2.bias, None

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C', h, w)."""
        y, mask, dense = x, None, {}
        if not self.whole:
            mask, dense = self.locate(x), self.dense
        if self.conv1 is not None:
            y = F.relu6(self.conv1(y))
            if "before" in dense:
                y = gate(y, dense["before"], mask if self.stride == 1 else _spread(mask, *x.shape[-2:]))
        y = self.conv2(y if self.reads is None else y[:, self.reads])
        if "across" in dense:
            y = gate(y, dense["across"], mask) + self.bias.view(1, -1, 1, 1)
        y = F.relu6(y)
        if mask is not None:
            y = gate(self.conv3(gate(y, dense["middle"], mask)), dense["outs"], mask)
        else:
            y = self.conv3(y)
        return x + y if self.shortcut else y


class PlainLocator(nn.Module):
    """A mask branch for dynamic sizes: no control flow depends on them."""

    def __init__(self, locate: Locator):
        super().__init__()
        pool = nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False)  # as if the last row of an odd size came twice
        self.layers, self.stride = nn.Sequential(pool, *list(locate)[1:]), locate.stride
        self.least = least(locate)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C, H, W) to the mask (N, 1, h, w) of 0 and 1."""
        height, width = x.shape[-2:]
        drop, keep = self.layers(x).split(1, 1)
        mask = (keep - drop > self.least).to(x.dtype)
        return mask if self.stride == 2 else _cut(mask, torch.arange(height), torch.arange(width))


def gate(y: Tensor, dense: Tensor, mask: Tensor) -> Tensor:
    """Zero y (N, C, H, W) in sparse channels at dropped locations; dense: (1, C, 1, 1), mask: (N, 1, H, W), 0 or 1."""
    return y * torch.maximum(mask, dense)


@torch.no_grad()
def constant(locate: Locator) -> bool | None:
    """Whether a mask branch keeps every location (True) or none (False) for any input; None if that depends on it.

    Derived from the signs of its weights, since ReLU outputs are non-negative.
    """
    first, second, last = locate[1], locate[3], locate[5]
    alive = (first.weight != 0).flatten(1).any(1) | (first.bias > 0)
    weight = second.weight * alive.view(1, -1, 1, 1)
    alive = (weight > 0).flatten(1).any(1) | (second.bias > 0)
    along = 1 if isinstance(last, nn.ConvTranspose2d) else 0
    drop, keep = last.weight.unbind(along)
    weight = (keep - drop) * alive.view(-1, *[1] * (keep.ndim - 1))
    bias = float(last.bias[1] - last.bias[0]) - least(locate)
    if bool((weight <= 0).all()) and bias <= 0:
        return False
    return True if bool((weight >= 0).all()) and bias > 0 else None


def _spread(mask: Tensor, height: int, width: int) -> Tensor:
    """Carry a mask from the output grid of a stride-2 module to its input's: each entry covers a 2×2 block."""
    return _cut(mask, torch.arange(height) // 2, torch.arange(width) // 2)


def _cut(mask: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Select rows and columns by index; slices of dynamic sizes would add guards."""
    return mask.index_select(2, rows).index_select(3, columns)


def least(locate: Locator) -> float:
    """Difference of logits (keep - drop) above which a location is kept."""
    return 0.0 if locate.threshold == 0.5 else math.log(locate.threshold / (1 - locate.threshold))


def _reaching(network: PrunedNetwork) -> set[int]:
    """Stages that the output depends on."""
    return {i for takers in network._takers.values() for i in takers}


def _some(flags: Tensor) -> Tensor:
    """The flags with at least one true, so that no layer is without channels."""
    if not flags.any():
        flags = flags.clone()
        flags[0] = True
    return flags


def _flags(dense: Tensor) -> nn.Parameter:
    return nn.Parameter(dense.to(torch.float32).view(1, -1, 1, 1), False)


def _conv(conv: nn.Conv2d, rows, columns) -> nn.Conv2d:
    """Some outputs of a 1×1 convolution, of some of its inputs."""
    weight, bias = conv.weight[rows][:, columns], conv.bias[rows]
    return _filled(nn.Conv2d(weight.shape[1], len(weight), 1), weight, bias)


def _depthwise(conv: nn.Conv2d, channels: Tensor) -> nn.Conv2d:
    weight = conv.weight[channels]
    count = len(weight)
    layer = nn.Conv2d(count, count, conv.kernel_size, conv.stride, conv.padding, groups=count)
    return _filled(layer, weight, conv.bias[channels])


def _filled(layer: nn.Conv2d, weight: Tensor, bias: Tensor) -> nn.Conv2d:
    layer.weight, layer.bias = (nn.Parameter(tensor.detach().clone(), False) for tensor in (weight, bias))
    return layer
