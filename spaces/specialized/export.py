"""Export of specialised networks: the skipping form as a torch program, the form whose masks multiply as ONNX."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsemask.exporting import Exportable, channels_last, pure
from sparsemask.spaces.specialized.network import SpecializedNetwork
from sparsemask.spaces.specialized.onnx_form import PlainForm

SIZE, EVEN = (65, 98), (64, 98)  # of the example; sizes are dynamic, for super-resolution even


def exportable(space, network: SpecializedNetwork, batch: Tensor) -> Exportable:
    """Describe the network as a function from images to scores at the last stage's size, or to larger images.

    Args:
        space: the network's space.
        network: in evaluation mode, on the CPU; its masks are exported hard.
        batch: images (B, C, H, W), whose number of channels counts; sizes are dynamic.
    """
    fast = space.fast_form(network)
    any_size = torch.export.Dim.DYNAMIC
    return Exportable(
        network=network,
        fast=lambda pictures: _run(fast, pictures),
        save=lambda path: space.save(path, network, space.masks_of(network)),
        program=pure(space.fast_form(network, chained=False), _run),
        plain=pure(PlainForm(network), lambda net, picture: net(picture)),
        inputs={"picture": torch.zeros(2, batch.shape[1], *(SIZE if network.scale is None else EVEN))},
        outputs=("scores" if network.scale is None else "larger",),
        dynamic=({0: any_size, 2: any_size, 3: any_size},),
        dense=pure(space.dense_form(network), lambda net, picture: net(picture)),
        multiple=1 if network.scale is None else 2,  # what the first convolution halves is cut to size else
    )


def _run(net: nn.Module, picture: Tensor) -> Tensor:
    """Run the skipping form and clear the state of its forward pass."""
    output = net(channels_last(picture))
    for module in net.masked.values():
        module.seen = None
    net._counted = None
    return output
