"""The space of retrained connectivity networks whose encoders are pruned by groups of weights.

The result is a connectivity network again, its encoder with fewer channels
(:mod:`sparsemask.spaces.connectivity.widths`), which is fine-tuned, evaluated, exported and specialised as any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsemask import spaces, weights
from sparsemask.config import RunConfig, flag
from sparsemask.errors import UseError
from sparsemask.flags import EncoderSection
from sparsemask.masks.decoder import DecoderMask, connections_of
from sparsemask.masks.groups import GroupMask, load_mask
from sparsemask.spaces import backbones, register
from sparsemask.spaces.backbones import forms
from sparsemask.spaces.connectivity.encoding import mask_word, read_mask
from sparsemask.spaces.connectivity.mask_source import Mask
from sparsemask.spaces.connectivity.space import ConnectivityConfig, mask_from
from sparsemask.spaces.connectivity.widths import widths_of
from sparsemask.spaces.described import describing
from sparsemask.spaces.group_sparsity.pairs import INITS
from sparsemask.spaces.group_sparsity.reduction import Hinged
from sparsemask.spaces.group_sparsity.rules import GENERAL, Plan, general_plan
from sparsemask.spaces.group_sparsity.space import HingeSpace
from sparsemask.spaces.group_sparsity.tracing.graph import ChannelGraph

ARCH = "connectivity"
_NETWORK = ("connectivity", "backbone_name", "depth", *forms.names(), "bn_momentum", "widths")


@dataclass(frozen=True, kw_only=True, slots=True)
class SlimNetwork(EncoderSection):
    """Which retrained connectivity network, and how its pairs begin."""

    connectivity: str | None = flag(help="the connections (default: those of the weights)")
    init: str = flag("svd2", choices=INITS, help="how pairs begin (default: svd2)")


class SlimSpace(HingeSpace):
    """Connectivity networks under the general rule of group sparsity (Li et al., CVPR 2020, section 3).

    Channels of the encoder can be removed, those that shortcuts and depth-wise convolutions tie as one group; its
    convolutions larger than 1×1 become pairs, whose ranks can be reduced too. An inverted residual is such a
    decomposition already: its expanded channels are its rank. The decoder keeps its channels; specialising masks them.
    """

    name = "slim"
    task = "segmentation"
    section = SlimNetwork
    trained_as = "connectivity"

    def settled(self, config: RunConfig, given: Mapping, state: Mapping[str, Tensor], what: object) -> dict[str, Any]:
        """Read the network's options from a retrained run's checkpoint or network.safetensors."""
        network_options = described(what)
        if config.network.bn_momentum is not None:
            network_options.pop("bn_momentum", None)
        for name, value in network_options.items():
            if name in given and given[name] != value:
                raise UseError(f"--{name} {given[name]}: {what} has {value}")
        return network_options

    def config(self, options, shape: Sequence[int] = (3, 97, 97)) -> dict:
        """Return the recipe of a network as plain values; arguments as :meth:`HingeSpace.config`."""
        if "arch_options" not in options:
            if not options.get("connectivity"):
                raise UseError(
                    "--pretrained_model is missing: a retrained connectivity network (runs/NAME/network.safetensors)"
                )
            network = {"backbone_name": ConnectivityConfig.backbone_name}
            network |= {name: options[name] for name in _NETWORK if options.get(name) is not None}
            network["whole_encoder"] = False
            options = {**options, "arch": ARCH, "arch_options": network, "variant": GENERAL}
        return super().config(options, shape)

    def plain(self, config) -> nn.Module:
        """Build the retrained network, its weights drawn from torch's generator."""
        config = self.config(config)
        # Recipes of version 0.1.0 do not say it: their groups are of the whole encoder.
        options = {"whole_encoder": True, **config["arch_options"], "n_class": config["n_class"]}
        return spaces.get("connectivity").network(_connections(options), options)

    def plan(self, plain: nn.Module, config: Mapping, graph: ChannelGraph) -> Plan:
        """Return the general rule's plan, restricted to the encoder's groups."""
        plan = general_plan(plain, graph)
        encoder_sets = tuple(s for s in plan.sets if all(m.module.startswith("backbone.") for m in s.members))
        return dataclasses.replace(plan, sets=encoder_sets)

    def structure(self, config) -> Hinged:
        """Build the network with its pairs, for weights to be loaded into."""
        return self.hinged(self.plain(config), config)

    def load_weights_into(self, network: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
        """Load a retrained network's weights."""
        weights.load_strictly(network, state, source)

    def start(self, path) -> dict[str, Tensor]:
        """Compute the weights of the pruned network of a mask file."""
        _, mask = self.read(path)
        return self.transfer(weights.load_weights(mask.checkpoint), mask)

    def read(self, path) -> tuple[np.ndarray | DecoderMask, GroupMask]:
        """Read the connectivity mask and the group mask of a mask file.

        Raises:
            UseError: a mask of another space, or its checkpoint is missing or has changed.
        """
        mask = load_mask(path)
        if mask.space != self.name:
            raise UseError(f"{path}: a mask of space '{mask.space}', not of '{self.name}'")
        if mask.checkpoint is None:
            raise UseError(f"{path}: does not say which search it comes from; prune again")
        mask.check_weights(mask.checkpoint, path)
        return _connections(mask.config["arch_options"]), mask


def _connections(options: Mapping) -> np.ndarray | DecoderMask:
    """The connectivity mask of a network's options, of either space."""
    strides = backbones.strides(options["backbone_name"])
    return read_mask(options["connectivity"], len(strides), 0, strides, options.get("depth", ConnectivityConfig.depth))


def described(what: object) -> dict:
    """Read a network's options from a retrained connectivity run's checkpoint or network.safetensors.

    Raises:
        UseError: a file of another network, or of the baseline without a decoder.
    """
    if Path(str(what)).suffix == ".safetensors":
        entries = weights.metadata(what)
        space, pairs, size = entries.get("space"), entries.get("connections"), entries.get("features")
        mask = None
        if pairs is not None and size is not None:
            with describing(what):
                mask = mask_from(pairs, size, entries.get("decoder"), str(what))
        options = {**entries, **forms.words_of(entries)}
    else:
        state = weights.read_checkpoint(what)
        space, mask, options = state.get("space"), state.get("mask"), dict(weights.config_of(state))
        mask = Mask.of_checkpoint(mask).decoder if isinstance(mask, Tensor) else None
    if space != "connectivity" or mask is None or not connections_of(mask).any():
        raise UseError(f"{what}: not of a retrained connectivity network (runs/NAME/network.safetensors)")
    known = {name: options.get(name) for name in _NETWORK if name != "connectivity" and name in options}
    return {**known, "connectivity": mask_word(mask)}


def small_widths(mask: np.ndarray | DecoderMask, options, state: Mapping[str, Tensor]) -> str | None:
    """Read the encoder's widths from a connectivity network's weights.

    Args:
        mask: connections, bool (L, L, 2), or a decoder of the wider space.
        options: of the network by name.
        state: its weights.

    Returns:
        As :func:`sparsemask.spaces.connectivity.widths.widths_of`; None if the widths are the backbone's own.
    """
    config = {**options, "widths": None, "whole_encoder": True}
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        backbone = spaces.get("connectivity").network(mask, config).backbone
    return widths_of(backbone, state)


register(SlimSpace.name, SlimSpace())
