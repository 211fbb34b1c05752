"""The connectivity space: a mask selects the features that each decoder stage fuses (arXiv 1904.07642).

Networks are written as safetensors files whose metadata describes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.masks.decoder import DecoderMask, decoder_mask
from sparsemask.spaces import backbones, get, register
from sparsemask.spaces.backbones import forms
from sparsemask.spaces.connectivity.mask_source import Mask
from sparsemask.spaces.connectivity.named_masks import named_mask
from sparsemask.spaces.connectivity.pruned_network import FCN, PrunedNetwork
from sparsemask.spaces.connectivity.search_network import FullyDenseNetwork
from sparsemask.spaces.connectivity.transfer import inherited_state
from sparsemask.spaces.described import build_described, describing
from sparsemask.spaces.protocols import Loaded, Space
from sparsemask.weights import bare_state, config_of, load_weights, metadata, read_checkpoint, save_safetensors

_FIXED = ("backbone_name", "depth", "n_class", "features")
_MOST = 1 << 31  # of any number that a file says


@dataclass(frozen=True)
class ConnectivityConfig:
    """Hyperparameters of the networks of this space.

    Raises:
        UseError: unknown backbone, or a value out of range.
    """

    backbone_name: str = "mobilenet_v2"
    depth: int = 64
    in_channels: int = 3
    n_class: int = 21
    bn_momentum: float = 0.0003
    noise_std: float = 0.1
    encoder: Mapping[str, bool] = field(default_factory=dict)
    """Arguments of the backbone's builder for a form that is not the default; weights decide it."""
    widths: str | None = None  # of the backbone's layers, if groups of weights were removed
    whole_encoder: bool = False  # whether what lies behind the deepest end point in use is built too

    def __post_init__(self):
        backbones.builder(self.backbone_name)  # UseError for unknown names
        values = vars(self)
        for name in ("depth", "in_channels", "n_class"):
            value = values[name]
            if not isinstance(value, int) or value < 1:
                raise UseError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name, low, high in (("bn_momentum", 0, 1), ("noise_std", 0, 2)):
            value = values[name]
            if not isinstance(value, int | float) or not low <= value <= high:
                raise UseError(f"{name} must be a number in [{low}, {high}], got {value!r}")

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | ConnectivityConfig) -> ConnectivityConfig:
        """Select this space's options from a mapping; foreign entries and None are ignored."""
        if isinstance(options, cls):
            return options
        known = {option.name for option in fields(cls)}
        picked = {key: value for key, value in options.items() if key in known and value is not None}
        return cls(**{"encoder": forms.arguments(picked.get("backbone_name", cls.backbone_name), options), **picked})

    def network_options(self) -> dict[str, Any]:
        """Keyword arguments common to all networks of the space."""
        options = {
            "backbone_name": self.backbone_name,
            "in_channels": self.in_channels,
            "num_classes": self.n_class,
            "bn_momentum": self.bn_momentum,
        }
        if self.widths:
            options["widths"] = self.widths
        if self.whole_encoder:
            options["whole_encoder"] = True
        return options | self.encoder


class ConnectivitySpace(Space):
    """SparseMask's space: 2^(L(L+1)) decoders on an encoder with L end points, and the wider one around it.

    Decoders of the wider space choose operations, widths and the output's stage too (:mod:`sparsemask.masks.decoder`).
    """

    family = "connectivity"
    name = "connectivity"
    config = ConnectivityConfig

    def supernet(self, config) -> FullyDenseNetwork:
        """The Fully Dense Network."""
        config = ConnectivityConfig.from_options(config)
        options = replace(config, widths=None, whole_encoder=False).network_options()
        return FullyDenseNetwork(depth=config.depth, noise_std=config.noise_std, **options)

    def network(self, mask: np.ndarray | DecoderMask | str, config) -> PrunedNetwork | FCN:
        """Build the small network of a mask of either space, of a named one, or of `fcn`, without a decoder."""
        config = ConnectivityConfig.from_options(config)
        options = config.network_options()
        if isinstance(mask, str):
            widths, whole = options.pop("widths", None), options.pop("whole_encoder", False)
            if mask == "fcn":
                if widths:
                    raise UseError("the baseline 'fcn' has no widths of its own: --widths is for networks of a mask")
                return FCN(**options)
            encoder = backbones.create(
                config.backbone_name, config.in_channels, momentum=config.bn_momentum, **config.encoder
            )
            mask = named_mask(mask, len(encoder.channels), strides=list(encoder.strides), depth=config.depth)
            settings = {"num_classes": config.n_class, "bn_momentum": config.bn_momentum, "widths": widths}
            settings["whole_encoder"] = whole
            return PrunedNetwork(mask, encoder, config.depth, config.in_channels, **settings)
        return PrunedNetwork(mask, depth=config.depth, **options)

    def transfer(
        self,
        checkpoint: Mapping[str, Tensor],
        mask: np.ndarray | DecoderMask | str,
        config,
        inherit: str = "encoder",
    ) -> dict[str, Tensor]:
        """Select the weights that a small network inherits from a supernet: `encoder` or `all`.

        The backbone's form is the checkpoint's, whatever `config` says.
        """
        config = ConnectivityConfig.from_options(config)
        form = forms.of_weights(checkpoint, config.backbone_name)
        config = replace(config, encoder=forms.arguments(config.backbone_name, form))
        return inherited_state(self.network(mask, config), checkpoint, inherit)

    def load(self, path: str | os.PathLike) -> Loaded:
        """Load a network and its mask, of either space, of safetensors or of a run's checkpoint; no mask for `fcn`."""
        network = load_network(path)
        return Loaded(network, network.mask)

    def exportable(self, network: PrunedNetwork | FCN, batch: Tensor, options, mask=None):
        """Describe the network for retrain/export.py; see :class:`sparsemask.exporting.Exportable`."""
        from sparsemask.spaces.connectivity.export import exportable

        return exportable(network, batch, options)


register(ConnectivitySpace.name, ConnectivitySpace())


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
    space = get(ConnectivitySpace.name)
    return build_described(lambda: space.network(mask, options), bare_state(checkpoint, path), path)
