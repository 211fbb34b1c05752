"""SMPointSeg from files: public checkpoints, checkpoints of runs, networks to share. The weights say what to build."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.masks.spatial import FineMasks
from sparsemask.spaces.described import build_described
from sparsemask.spaces.smpointseg.network import CONFIGS, SMPointSeg
from sparsemask.spaces.sparse_conv import masked_space

_TOLD = ("n_neighbors", "radius", "ratio")  # what no weight tells


def config_of(state: Mapping[str, Tensor], what: object = "checkpoint", said: Mapping | None = None) -> dict:
    """The arguments of the :class:`SMPointSeg` that a state dict belongs to; UseError naming `what` if it is of none.

    said: its numbers of neighbours, radius and ratio; what is missing is that of the published network of these widths,
    else of S3DIS's.
    """
    numbers = {int(found[1]) for key in state if (found := re.match(r"encoder\.(\d+)\.ch_mask$", key))}
    try:
        channels = [int(state[f"encoder.{level}.ch_mask"].shape[1]) for level in range(len(numbers))]
        layers = int(state["encoder.0.ch_mask"].shape[0])
        d_in = int(state["init.body.0.conv_1x1.weight"].shape[1])
        n_class = int(state["tail.2.body.0.conv_1x1.weight"].shape[0])
    except (KeyError, IndexError):
        raise UseError(f"{what}: no weights of an SMPointSeg network") from None
    if not channels or layers > len(state) or numbers != set(range(len(numbers))):
        raise UseError(f"{what}: no weights of an SMPointSeg network (blocks missing)")
    known = next((c for c in CONFIGS.values() if list(c["channels"]) == channels), CONFIGS["s3dis"])
    told = {"ratio": 4, **{name: known[name] for name in ("n_neighbors", "radius")}}
    told |= {name: said[name] for name in _TOLD if said and isinstance(said.get(name), int | float)}
    return {"d_in": d_in, "n_class": n_class, "channels": channels, "layers": layers, **told}


def build(state: Mapping[str, Tensor], what: object = "checkpoint", said: Mapping | None = None) -> SMPointSeg:
    """The network of a state dict, strictly loaded, in evaluation mode; UseError naming `what` if it does not fit."""
    config = config_of(state, what, said)
    return build_described(lambda: SMPointSeg(**config), state, what)


def load_smpointseg(path: str | os.PathLike) -> SMPointSeg:
    """The network of a file, in evaluation mode on the CPU: public checkpoint, run's checkpoint, safetensors.

    See :func:`sparsemask.spaces.sparse_conv.masked_space.load`.
    """
    return masked_space.load(path, build)


def save_smpointseg(path: str | os.PathLike, network: SMPointSeg, masks: FineMasks | None = None) -> None:
    """Write a network to share; see :func:`sparsemask.spaces.sparse_conv.masked_space.save`."""
    masked_space.save(path, network, "smpointseg", masks)
