"""The connectivity space: a mask selects the features that each decoder stage fuses (arXiv 1904.07642)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.masks.decoder import DecoderMask
from sparsemask.spaces import backbones, register
from sparsemask.spaces.backbones import forms
from sparsemask.spaces.connectivity.named_masks import named_mask
from sparsemask.spaces.connectivity.pruned_network import FCN, PrunedNetwork
from sparsemask.spaces.connectivity.search_network import FullyDenseNetwork
from sparsemask.spaces.connectivity.transfer import inherited_state
from sparsemask.spaces.protocols import Loaded, Space


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
        from sparsemask.spaces.connectivity.shared import load_network

        network = load_network(path)
        return Loaded(network, network.mask)

    def exportable(self, network: PrunedNetwork | FCN, batch: Tensor, options, mask=None):
        """Describe the network for retrain/export.py; see :class:`sparsemask.exporting.Exportable`."""
        from sparsemask.spaces.connectivity.export import exportable

        return exportable(network, batch, options)


register(ConnectivitySpace.name, ConnectivitySpace())
