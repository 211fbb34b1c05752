"""Connectivity networks as safetensors files whose metadata describes the network."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from sparsemask import spaces
from sparsemask.errors import UseError
from sparsemask.masks.decoder import DecoderMask, decoder_mask
from sparsemask.spaces.backbones import forms
from sparsemask.spaces.connectivity.mask_source import Mask
from sparsemask.spaces.connectivity.pruned_network import FCN, PrunedNetwork
from sparsemask.spaces.described import build_described, describing
from sparsemask.weights import bare_state, config_of, load_weights, metadata, read_checkpoint, save_safetensors

_FIXED = ("backbone_name", "depth", "n_class", "features")
_MOST = 1 << 31  # of any number that a file says


def save_network(path: str | os.PathLike, network: PrunedNetwork | FCN, config: Mapping, n_class: int) -> None:
    """Write a network as a safetensors file that describes it, atomically.

    Args:
        path: the file.
        network: its weights, mask and widths are written.
        config: has backbone_name, depth and the encoder's form (:mod:`sparsemask.spaces.backbones.forms`).
        n_class: channels of the output.
    """
    entries = {
        "space": "connectivity",
        "backbone_name": config["backbone_name"],
        "depth": config["depth"],
        "n_class": n_class,
        **forms.flags_of(config),
        "features": len(network.backbone.channels),
        **_entries(network.mask),
        "widths": network.widths,
    }
    save_safetensors(path, network.state_dict(), {k: json.dumps(v) for k, v in entries.items()})


def _entries(mask: np.ndarray | DecoderMask | None) -> dict[str, Any]:
    """What a file says of the decoder; `decoder` is of the wider space alone."""
    if isinstance(mask, DecoderMask):
        words = {"operations": mask.operations.tolist(), "widths": mask.widths.tolist(), "context": mask.context}
        return {"connections": np.argwhere(mask.connections).tolist(), "decoder": words}
    return {"connections": None if mask is None else np.argwhere(mask).tolist()}


def mask_from(
    connections: list[list[int]], features: int, decoder: Mapping[str, Any] | None = None, what: str = "mask"
) -> np.ndarray | DecoderMask:
    """Build the mask from a file's list of connections.

    Args:
        connections: (stage, feature, kind) of each.
        features: L, 1 to 1000.
        decoder: what the file says of a decoder of the wider space: operations, widths, context.
        what: how error messages begin.

    Returns:
        Bool (L, L, 2), or a decoder of the wider space.

    Raises:
        UseError: no such decoder.
        ValueError: L out of range.
        IndexError: a connection outside of L features.
    """
    if not isinstance(features, int) or not 0 < features <= 1000:
        raise ValueError(f"{features!r:.40} features")
    mask = np.zeros((features, features, 2), dtype=bool)
    mask[tuple(np.array(connections).T)] = True
    if decoder is None:
        return mask
    return decoder_mask(mask, decoder["operations"], decoder["widths"], decoder["context"], what)


def load_network(path: str | os.PathLike, backbone: Callable[..., nn.Module] | None = None) -> PrunedNetwork | FCN:
    """Load a network from a file that :func:`save_network` wrote (a run's network.safetensors), or a run's checkpoint.

    Args:
        path: the file.
        backbone: the class or function that builds the encoder, if the file names a user's code: files import
            nothing, see :mod:`sparsemask.plugins`.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        UseError: the file is missing, damaged, does not describe a network, or names code that the user has not named.
    """
    if Path(path).suffix != ".safetensors":
        return _of_checkpoint(path, backbone)
    state, entries = load_weights(path), metadata(path)
    missing = [key for key in (*_FIXED, "connections") if key not in entries]
    if missing:
        raise UseError(f"{path}: does not say what network it is ({missing[0]}); build one and use load_weights")
    name, depth, n_class, features = (entries[key] for key in _FIXED)
    for key, value in (("depth", depth), ("n_class", n_class), ("features", features)):
        if not isinstance(value, int) or not 0 < value < _MOST:
            raise UseError(f"{path}: {key} must be a whole number from 1 to {_MOST - 1}, found {repr(value):.40}")
    options = {"backbone_name": name if backbone is None else backbone, "num_classes": n_class}
    options |= forms.arguments(name, entries)
    connections = entries["connections"]
    if connections is None:
        return build_described(lambda: FCN(**options), state, path)
    with describing(path):
        mask = mask_from(connections, features, entries.get("decoder"), str(path))
    return build_described(
        lambda: PrunedNetwork(mask, depth=depth, widths=entries.get("widths"), **options), state, path
    )


def _of_checkpoint(path: str | os.PathLike, backbone: Callable[..., nn.Module] | None) -> PrunedNetwork | FCN:
    """The network of a retrain run's checkpoint."""
    checkpoint = read_checkpoint(path)
    config = config_of(checkpoint)
    if checkpoint.get("verb") == "search":
        raise UseError(f"{path}: is of a search, whose network has all connections: prune and retrain it first")
    if not config or "mask" not in checkpoint:
        raise UseError(f"{path}: does not say what network it is; build one and use load_weights")
    mask = Mask.of_checkpoint(checkpoint["mask"]).argument
    options = {**config, **({} if backbone is None else {"backbone_name": backbone})}
    space = spaces.get("connectivity")
    return build_described(lambda: space.network(mask, options), bare_state(checkpoint, path), path)
