"""Dense super-resolution networks as they are written for other programs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sparsemask.exporting import Exportable, channels_last, laid_out, pure
from sparsemask.spaces.sr_networks import checkpoints
from sparsemask.spaces.sr_networks.network import SRNetwork

_SIZE = (64, 96)  # of the exported example; sizes stay open
# Smaller images leave RLFN one value of its pooled map, for which another program would be traced.
_LEAST, _LARGEST = 24, 1 << 13


def exportable(network: SRNetwork) -> Exportable:
    """Describe a network as a function from images (1, 3, H, W) of 0 to 255 to (1, 3, s·H, s·W), 24 and more each.

    Args:
        network: folded, in evaluation mode, on the CPU.
    """
    height, width = (torch.export.Dim(name, min=_LEAST, max=_LARGEST) for name in ("height", "width"))
    form = pure(copy.deepcopy(network), _run)
    return Exportable(
        network=network,
        fast=lambda pictures: network(channels_last(pictures)),
        save=lambda path: checkpoints.save(path, network),
        program=laid_out(form, last=True),
        plain=form,
        inputs={"picture": torch.zeros(1, 3, *_SIZE)},
        outputs=("larger",),
        dynamic=({2: height, 3: width},),
    )


def _run(network: nn.Module, picture: Tensor) -> Tensor:
    output: Tensor = network(picture)
    return output
