"""Export of specialised networks: the skipping form as a torch program, the form whose masks multiply as ONNX."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.exporting import Exportable, channels_last, pure
from sparsemask.masks import UP
from sparsemask.ops import dispatch
from sparsemask.ops.masked_network import MaskedNetworkWeights, masked_network, pack
from sparsemask.ops.packed import Packed
from sparsemask.spaces.backbones.mobilenet_v2 import MobileNetV2
from sparsemask.spaces.specialized.accounting import number
from sparsemask.spaces.specialized.chain import links_of
from sparsemask.spaces.specialized.network import SpecializedNetwork
from sparsemask.spaces.specialized.onnx_form import PlainForm
from sparsemask.spaces.specialized.stage import FoldedDecoder

SIZE, EVEN = (65, 98), (64, 98)  # of the example; sizes are dynamic, for super-resolution even


def exportable(space, network: SpecializedNetwork, batch: Tensor) -> Exportable:
    """Describe the network as a function from images to scores at the last stage's size, or to larger images.

    Args:
        space: the network's space.
        network: in evaluation mode, on the CPU; its masks are exported hard.
        batch: images (B, C, H, W), whose number of channels counts; sizes are dynamic.
    """
    fast, operators = space.fast_form(network), space.fast_form(network, chained=False)
    program = WholeNetwork.of(space.fast_form(network)) or operators
    any_size = torch.export.Dim.DYNAMIC
    return Exportable(
        network=network,
        fast=lambda pictures: _run(fast, pictures),
        save=lambda path: space.save(path, network, space.masks_of(network)),
        program=pure(program, _run),
        whole=pure(operators, _run),
        plain=pure(PlainForm(network), lambda net, picture: net(picture)),
        inputs={"picture": torch.zeros(2, batch.shape[1], *(SIZE if network.scale is None else EVEN))},
        outputs=("scores" if network.scale is None else "larger",),
        dynamic=({0: any_size, 2: any_size, 3: any_size},),
        dense=pure(space.dense_form(network), lambda net, picture: net(picture)),
        multiple=1 if network.scale is None else 2,  # what the first convolution halves is cut to size else
    )


class WholeNetwork(nn.Module):
    """A folded network whose masked blocks and stages are one operator.

    Args:
        network: folded, on a MobileNetV2 with blocks, its decoder that of connections.
    """

    def __init__(self, network: SpecializedNetwork):
        super().__init__()
        backbone, decoder = network.backbone, network.decoder
        assert isinstance(backbone, MobileNetV2) and isinstance(decoder, FoldedDecoder)
        located = {number(name): module.locate for name, module in network.stage_masks.items() if module.locate}
        ends = list(itertools.accumulate(len(stage) for stage in backbone.bottlenecks))
        outputs = [-1, *(end - 1 for end in ends), *([] if backbone.deepest else [ends[-1]])]
        begin, count = backbone.deepest, backbone.deepest + len(outputs)
        stages = decoder.stages(begin, count, located)
        branches = [located[stage.point + begin].described() if stage.masked else None for stage in stages]
        weights = MaskedNetworkWeights(links_of(backbone), outputs[::-1], (UP, 0) in decoder.takers, stages, branches)
        packed = pack(weights)
        self.scale, self.first = network.scale, backbone.conv1
        self.classify = nn.Parameter(decoder.classify.detach().flatten(1).clone(), False)
        self.bias = network.fc_conv.bias
        for name, tensor in (("numbers", packed.numbers), ("flags", packed.flags)):
            self.register_buffer(name, tensor)
        if network.scale is not None:
            self.register_buffer("mean", network.mean)
            self.register_buffer("std", network.std)
        self._layout, self._reals = packed.layout, packed.reals

    @classmethod
    def of(cls, network: SpecializedNetwork) -> WholeNetwork | None:
        """That of a folded network; None where it has none."""
        backbone = network.backbone
        if type(backbone) is not MobileNetV2 or not len(backbone.bottlenecks) or network.decoder is None:
            return None
        return cls(network)

    def forward(self, x: Tensor) -> Tensor:
        """See :class:`SpecializedNetwork`."""
        return self._scored(x) if self.scale is None else SpecializedNetwork.enlarged(self, x, self._scored)

    def _scored(self, x: Tensor) -> Tensor:
        packed = Packed(self.numbers, self.flags, self._layout, self._reals)
        rows = masked_network(self.first(x), packed, dispatch.current("auto")).permute(0, 2, 3, 1)
        return F.linear(rows, self.classify, self.bias).permute(0, 3, 1, 2)


def _run(net: nn.Module, picture: Tensor) -> Tensor:
    """Run the skipping form and clear the state of its forward pass."""
    output: Tensor = net(channels_last(picture))
    if isinstance(net, SpecializedNetwork):
        for module in net.masked.values():
            module.seen = None
        net._counted = None
    return output
