"""SMPointSeg from files: public checkpoints, checkpoints of runs, safetensors. Weights determine the architecture."""

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

_TOLD = ("n_neighbors", "radius", "ratio")  # arguments that weights do not determine


def config_of(state: Mapping[str, Tensor], what: object = "checkpoint", description: Mapping | None = None) -> dict:
    """Determine the arguments of an :class:`SMPointSeg` from its state dict.

    Args:
        state: the weights.
        what: the file's name in errors.
        description: `n_neighbors`, `radius` and `ratio`; missing ones are those of the published network with these
            widths, else of S3DIS's.

    Raises:
        UseError: weights of another network.
    """
    numbers = {int(match[1]) for key in state if (match := re.match(r"encoder\.(\d+)\.ch_mask$", key))}
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
    settings = {"ratio": 4, **{name: known[name] for name in ("n_neighbors", "radius")}}
    settings |= {
        name: description[name] for name in _TOLD if description and isinstance(description.get(name), int | float)
    }
    return {"d_in": d_in, "n_class": n_class, "channels": channels, "layers": layers, **settings}


def build(state: Mapping[str, Tensor], what: object = "checkpoint", description: Mapping | None = None) -> SMPointSeg:
    """Build the network of a state dict, strictly loaded, in evaluation mode; arguments as :func:`config_of`.

    Raises:
        UseError: weights of another network.
    """
    config = config_of(state, what, description)
    return build_described(lambda: SMPointSeg(**config), state, what)


def load_smpointseg(path: str | os.PathLike) -> SMPointSeg:
    """Load a network from a public checkpoint, a run's checkpoint or a safetensors file, in evaluation mode on the CPU.

    See :func:`sparsemask.spaces.sparse_conv.masked_space.load`.
    """
    return masked_space.load(path, build)


def save_smpointseg(path: str | os.PathLike, network: SMPointSeg, masks: FineMasks | None = None) -> None:
    """Write a network as safetensors; arguments as :func:`sparsemask.spaces.sparse_conv.masked_space.save`."""
    masked_space.save(path, network, "smpointseg", masks)
