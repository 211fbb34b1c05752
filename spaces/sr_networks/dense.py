"""Dense super-resolution networks as they are written for other programs."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sparsemask.exporting import Exportable, channels_last, laid_out, pure
from sparsemask.spaces.sr_networks import checkpoints
from sparsemask.spaces.sr_networks.network import SRNetwork

_SIZE = (64, 96)  # of the exported example; sizes stay open
_LARGEST = 1 << 13


def exportable(network: SRNetwork) -> Exportable:
    """Describe a network as a function from images (1, 3, H, W) of 0 to 255 to (1, 3, s·H, s·W).

    H and W are open, from `smallest_traced` on.

    Args:
        network: folded, in evaluation mode, on the CPU.
    """
    least = network.smallest_traced
    height, width = (torch.export.Dim(name, min=least, max=_LARGEST) for name in ("height", "width"))
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
        least=least,
    )


def _run(network: nn.Module, picture: Tensor) -> Tensor:
    output: Tensor = network(picture)
    return output
