"""SMSR from files: public checkpoints, checkpoints of runs, networks to share. The weights say what to build."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from spaces.sparse_conv.masking import apply_masks, hard_masks
from spaces.sparse_conv.smsr import SMSR
from sparsemask import weights
from sparsemask.errors import UseError
from sparsemask.fine_masks import FineMasks

_SPACE = "smsr"


def config_of(state: Mapping[str, Tensor], what: object = "checkpoint") -> dict[str, int]:
    """The arguments of the :class:`SMSR` that a state dict belongs to; UseError naming `what` when it is of none."""
    numbers = {int(found[1]) for key in state if (found := re.match(r"body\.(\d+)\.body\.ch_mask$", key))}
    try:
        channels, layers = state["body.0.body.ch_mask"].shape[1:3]
        narrow, wide = state["body.0.ca.conv_du.0.weight"].shape[:2]
        outputs = state["tail.0.weight"].shape[0]
    except (KeyError, IndexError, ValueError):
        raise UseError(f"{what}: no weights of an SMSR network") from None
    scale = round((outputs / 3) ** 0.5)
    if 3 * scale**2 != outputs or numbers != set(range(len(numbers))):
        raise UseError(f"{what}: no weights of an SMSR network (an odd last convolution, or modules missing)")
    return {
        "scale": scale,
        "n_feats": int(channels),
        "n_modules": len(numbers),
        "n_layers": int(layers),
        "reduction": int(wide // narrow),
    }


def build(state: Mapping[str, Tensor], what: object = "checkpoint") -> SMSR:
    """The network of a state dict, strictly loaded, in evaluation mode; UseError naming `what` if it does not fit."""
    network = SMSR(**config_of(state, what))
    for name in ("sub_mean.weight", "add_mean.weight"):
        if name in state and not torch.equal(state[name].flatten(1).cpu(), torch.eye(3)):
            raise UseError(
                f"{what}: {name} is no identity: colours with a standard deviation of their own are not known"
            )
    weights.load_strictly(network, state, what)
    return network.eval()


def load_smsr(path: str | os.PathLike) -> SMSR:
    """The network of a file, in evaluation mode on the CPU: public checkpoint, run's checkpoint, safetensors.

    The threshold of its data masks is the file's, if it says one. Raises UseError when it is missing, torn, or no SMSR.
    """
    found = weights.read_checkpoint(path)
    network = build(weights.bare_state(found, path), path)
    said = weights.metadata(path) if Path(path).suffix == ".safetensors" else found.get("mask")
    if isinstance(said, Mapping) and isinstance(said.get("threshold"), float):
        apply_masks(network, hard_masks(network), said["threshold"])
    return network


def save_smsr(path: str | os.PathLike, network: SMSR, masks: FineMasks | None = None) -> None:
    """Write a network to share: safetensors whose metadata says the space and the data masks' threshold."""
    threshold = 0.5 if masks is None else masks.threshold
    said = {"space": _SPACE, "threshold": float(threshold), **network.config}
    weights.save_safetensors(path, network.state_dict(), {k: json.dumps(v) for k, v in said.items()})
