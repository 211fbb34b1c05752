"""SMSR from files: public checkpoints, checkpoints of runs, safetensors. Weights determine the architecture."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.masks.spatial import FineMasks
from sparsemask.spaces.described import build_described
from sparsemask.spaces.smsr.network import SMSR
from sparsemask.spaces.sparse_conv import masked_space


def config_of(state: Mapping[str, Tensor], what: object = "checkpoint") -> dict[str, int]:
    """Determine the arguments of an :class:`SMSR` from its state dict.

    Args:
        state: the weights.
        what: the file's name in errors.

    Raises:
        UseError: weights of another network.
    """
    numbers = {int(match[1]) for key in state if (match := re.match(r"body\.(\d+)\.body\.ch_mask$", key))}
    try:
        channels, layers = state["body.0.body.ch_mask"].shape[1:3]
        narrow, wide = state["body.0.ca.conv_du.0.weight"].shape[:2]
        outputs, reduction = state["tail.0.weight"].shape[0], wide // narrow
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        raise UseError(f"{what}: no weights of an SMSR network") from None
    scale = round((outputs / 3) ** 0.5)
    if 3 * scale**2 != outputs or layers > len(state) or numbers != set(range(len(numbers))):
        raise UseError(f"{what}: no weights of an SMSR network (an odd last convolution, or modules missing)")
    return {
        "scale": scale,
        "n_feats": int(channels),
        "n_modules": len(numbers),
        "n_layers": int(layers),
        "reduction": int(reduction),
    }


def build(state: Mapping[str, Tensor], what: object = "checkpoint", description: Mapping | None = None) -> SMSR:
    """Build the network of a state dict, strictly loaded, in evaluation mode.

    Args:
        state: the weights.
        what: the file's name in errors.
        description: ignored; the weights determine everything.

    Raises:
        UseError: weights of another network.
    """
    config = config_of(state, what)
    for name in ("sub_mean.weight", "add_mean.weight"):
        if name in state and not torch.equal(state[name].flatten().cpu(), torch.eye(3).flatten()):
            raise UseError(
                f"{what}: {name} is no identity: colours with a standard deviation of their own are not known"
            )
    return build_described(lambda: SMSR(**config), state, what)


def load_smsr(path: str | os.PathLike) -> SMSR:
    """Load a network from a public checkpoint, a run's checkpoint or a safetensors file, in evaluation mode on the CPU.

    See :func:`sparsemask.spaces.sparse_conv.masked_space.load`.
    """
    return masked_space.load(path, build)


def save_smsr(path: str | os.PathLike, network: SMSR, masks: FineMasks | None = None) -> None:
    """Write a network as safetensors; arguments as :func:`sparsemask.spaces.sparse_conv.masked_space.save`."""
    masked_space.save(path, network, "smsr", masks)
