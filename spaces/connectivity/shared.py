"""Networks as files to share: safetensors whose metadata says what to build."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from safetensors import safe_open
from torch import nn

from spaces.connectivity.pruned_network import FCN, PrunedNetwork
from sparsemask.errors import UseError
from sparsemask.weights import load_strictly, load_weights, save_safetensors

_FIXED = ("backbone_name", "depth", "n_class", "features")


def save_network(path: str | os.PathLike, network: nn.Module, config, n_class: int) -> None:
    """Write a PrunedNetwork or FCN; `config` names backbone_name, depth and first_expansion."""
    mask = getattr(network, "mask", None)
    entries = {
        "space": "connectivity",
        "backbone_name": config.backbone_name,
        "depth": config.depth,
        "n_class": n_class,
        "first_expansion": config.first_expansion != "no",
        "features": len(network.backbone.channels),
        "connections": None if mask is None else np.argwhere(mask).tolist(),
        "widths": getattr(network, "widths", None),
    }
    save_safetensors(path, network.state_dict(), {k: json.dumps(v) for k, v in entries.items()})


def mask_from(connections: list[list[int]], features: int) -> np.ndarray:
    """The mask bool (L,L,2) of the connections that a file lists."""
    mask = np.zeros((features, features, 2), dtype=bool)
    mask[tuple(np.array(connections).T)] = True
    return mask


def load_network(path: str | os.PathLike) -> nn.Module:
    """The network of a file written by :func:`save_network` (a run's network.safetensors), in evaluation mode.

    Raises UseError when it is missing, torn, or says not enough about itself.
    """
    state = load_weights(path)
    if Path(path).suffix != ".safetensors":
        raise UseError(f"{path}: only a safetensors file says what network it is; build one and use load_weights")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    try:
        said = {key: json.loads(value) for key, value in metadata.items()}
        name, depth, n_class, features = (said[key] for key in _FIXED)
        connections = said["connections"]
    except (KeyError, ValueError) as error:
        raise UseError(f"{path}: does not say what network it is ({error}); build one and use load_weights") from None
    options = {"backbone_name": name, "num_classes": n_class}
    if not said.get("first_expansion", True):
        options["first_expansion"] = False
    if connections is None:
        network = FCN(**options)
    else:
        mask = mask_from(connections, features)
        network = PrunedNetwork(mask, depth=depth, widths=said.get("widths"), **options)
    load_strictly(network, state, path)
    return network.eval()
