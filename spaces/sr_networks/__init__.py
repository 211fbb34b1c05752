"""Dense super-resolution networks that people run, from their public checkpoints."""

from __future__ import annotations

from sparsemask.spaces.sr_networks.checkpoints import ARCHITECTURES, build, load, recognise, save
from sparsemask.spaces.sr_networks.edsr import EDSR
from sparsemask.spaces.sr_networks.network import SRNetwork, StagedNetwork
from sparsemask.spaces.sr_networks.plksr import PLKSR
from sparsemask.spaces.sr_networks.rlfn import RLFN
from sparsemask.spaces.sr_networks.span import SPAN
from sparsemask.spaces.sr_networks.srvgg import SRVGGNetCompact
from sparsemask.spaces.sr_networks.tiles import upscale

__all__ = [
    "ARCHITECTURES",
    "EDSR",
    "PLKSR",
    "RLFN",
    "SPAN",
    "SRNetwork",
    "SRVGGNetCompact",
    "StagedNetwork",
    "build",
    "load",
    "recognise",
    "save",
    "upscale",
]
