"""The connectivity space: which features should each decoder stage fuse?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import Tensor, nn

from spaces import backbones, register
from spaces.backbones.weights import has_first_expansion, has_two_forms
from spaces.connectivity.named_masks import named_mask
from spaces.connectivity.pruned_network import FCN, PrunedNetwork
from spaces.connectivity.search_network import FullyDenseNetwork
from spaces.connectivity.transfer import inherited_state
from sparsemask.errors import UseError


@dataclass(frozen=True)
class ConnectivityConfig:
    """What fixes the networks of this space, and nothing else."""

    backbone_name: str = "mobilenet_v2"
    depth: int = 64
    in_channels: int = 3
    n_class: int = 21
    bn_momentum: float = 0.0003
    noise_std: float = 0.1
    first_expansion: bool = True  # the backbone's form; imported weights decide it
    widths: str | None = None  # of its layers, where groups of weights were removed

    def __post_init__(self):
        backbones.builder(self.backbone_name)  # UseError for unknown names
        for name in ("depth", "in_channels", "n_class"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise UseError(f"{name} must be a whole number of at least 1, got {value!r}")
        for name, low, high in (("bn_momentum", 0, 1), ("noise_std", 0, 2)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not low <= value <= high:
                raise UseError(f"{name} must be a number in [{low}, {high}], got {value!r}")

    @classmethod
    def from_options(cls, options: Mapping[str, Any] | SimpleNamespace | ConnectivityConfig) -> ConnectivityConfig:
        """Pick this space's options out of a mapping or namespace, passing over foreign and None entries."""
        if isinstance(options, cls):
            return options
        options = options if isinstance(options, Mapping) else vars(options)
        known = {field.name for field in fields(cls)}
        picked = {key: value for key, value in options.items() if key in known and value is not None}
        if isinstance(picked.get("first_expansion"), str):  # the flag's words
            picked["first_expansion"] = picked["first_expansion"] != "no"
        return cls(**picked)

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
        # Only some backbones come in two forms.
        two_forms = has_two_forms(self.backbone_name) and not self.first_expansion
        return options | {"first_expansion": False} if two_forms else options


class ConnectivitySpace:
    """SparseMask's space: 2^(L(L+1)) decoders on an encoder with L end points."""

    family = "connectivity"
    config = ConnectivityConfig

    def supernet(self, config) -> FullyDenseNetwork:
        """The Fully Dense Network."""
        config = ConnectivityConfig.from_options(config)
        options = replace(config, widths=None).network_options()
        return FullyDenseNetwork(depth=config.depth, noise_std=config.noise_std, **options)

    def network(self, mask: np.ndarray | str, config) -> PrunedNetwork | FCN:
        """The small network of a mask, of a named mask, or of `fcn`, the baseline without a decoder."""
        config = ConnectivityConfig.from_options(config)
        options = config.network_options()
        if isinstance(mask, str):
            widths = options.pop("widths", None)
            if mask == "fcn":
                if widths:
                    raise UseError("the baseline 'fcn' has no widths of its own: --widths is for networks of a mask")
                return FCN(**options)
            encoder = backbones.create(options.pop("backbone_name"), options.pop("in_channels"), **_encoder(options))
            options |= {"backbone_name": encoder, "widths": widths}
            mask = named_mask(mask, len(encoder.channels))
        return PrunedNetwork(mask, depth=config.depth, **options)

    def transfer(
        self, checkpoint: Mapping[str, Tensor], mask: np.ndarray | str, config, inherit: str = "encoder"
    ) -> dict[str, Tensor]:
        """The state a small network starts from, out of a supernet's bare state dict: its encoder, or `all`.

        The backbone's form is the checkpoint's, whatever `config` says.
        """
        config = ConnectivityConfig.from_options(config)
        form = has_first_expansion(checkpoint, config.backbone_name)
        config = replace(config, first_expansion=form)
        return inherited_state(self.network(mask, config), checkpoint, inherit)

    def cost(self, net: nn.Module, input_shape: tuple[int, ...]):
        """Parameters, executed multiply-adds and milliseconds of `net` on input (B, C, H, W)."""
        from sparsemask.costs import measure

        return measure(net, input_shape)

    def load(self, path) -> PrunedNetwork | FCN:
        """The network of a file to share, in evaluation mode."""
        from spaces.connectivity.shared import load_network

        return load_network(path)

    def exportable(self, network: PrunedNetwork | FCN, batch: Tensor, options, mask=None):
        """What retrain/export.py writes; see :class:`sparsemask.exporting.Exportable`."""
        from spaces.connectivity.export import exportable

        return exportable(network, batch, options)


def _encoder(options: dict[str, Any]) -> dict[str, Any]:
    encoder = {"momentum": options["bn_momentum"]}
    if "first_expansion" in options:
        encoder["first_expansion"] = options.pop("first_expansion")
    return encoder


register("connectivity", ConnectivitySpace())
