"""The space of retrained connectivity networks whose encoders lose groups of weights.

What remains is a connectivity network again, its encoder with fewer channels
(:mod:`sparsemask.spaces.connectivity.widths`), so that it is fine-tuned, evaluated, exported and specialised as any
other.
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
from sparsemask.masks import DOWN, UP
from sparsemask.masks.groups import GroupMask, load_mask
from sparsemask.spaces import backbones, register
from sparsemask.spaces.backbones import forms
from sparsemask.spaces.connectivity.encoding import mask_word, read_mask
from sparsemask.spaces.connectivity.shared import mask_from
from sparsemask.spaces.connectivity.space import ConnectivityConfig
from sparsemask.spaces.connectivity.widths import widths_of
from sparsemask.spaces.group_sparsity.channels import trace
from sparsemask.spaces.group_sparsity.general import general_plan
from sparsemask.spaces.group_sparsity.matrices import INITS
from sparsemask.spaces.group_sparsity.reduction import Hinged, example
from sparsemask.spaces.group_sparsity.rules import GENERAL, Plan
from sparsemask.spaces.group_sparsity.space import HingeSpace

ARCH = "connectivity"
_NETWORK = ("connectivity", "backbone_name", "depth", *forms.names(), "bn_momentum", "widths")


@dataclass(frozen=True, kw_only=True, slots=True)
class SlimNetwork(EncoderSection):
    """Which retrained connectivity network, and how its pairs begin."""

    connectivity: str | None = flag(help="the connections (default: those of the weights)")
    init: str = flag("svd2", choices=INITS, help="how pairs begin (default: svd2)")


class SlimSpace(HingeSpace):
    """Connectivity networks under the general rule of group sparsity (Li et al., CVPR 2020, section 3).

    Channels of the encoder may vanish, those that shortcuts and depth-wise convolutions tie as one group; its
    convolutions larger than 1×1 become pairs, whose ranks may vanish too. An inverted residual is such a
    decomposition: its expanded channels are its rank. The decoder keeps its channels: what masks them is specialising.
    """

    name = "slim"
    task = "segmentation"
    section = SlimNetwork
    trained_as = "connectivity"

    def settled(self, config: RunConfig, given: Mapping, state: Mapping[str, Tensor], what: object) -> dict[str, Any]:
        """The network's numbers, from a retrained run's checkpoint or network.safetensors."""
        found = described(what)
        if config.network.bn_momentum is not None:
            found.pop("bn_momentum", None)
        for name, value in found.items():
            if name in given and given[name] != value:
                raise UseError(f"--{name} {given[name]}: {what} has {value}")
        return found

    def config(self, options, shape: Sequence[int] = (3, 97, 97)) -> dict:
        """The recipe of a network, plain values."""
        found = options
        if "arch_options" not in found:
            if not found.get("connectivity"):
                raise UseError(
                    "--pretrained_model is missing: a retrained connectivity network (runs/NAME/network.safetensors)"
                )
            network = {"backbone_name": ConnectivityConfig.backbone_name}
            network |= {name: found[name] for name in _NETWORK if found.get(name) is not None}
            found = {**found, "arch": ARCH, "arch_options": network, "variant": GENERAL}
        return super().config(found, shape)

    def plain(self, config) -> nn.Module:
        """The network as it was retrained, its weights drawn from torch's generator."""
        config = self.config(config)
        said = config["arch_options"]
        mask = read_mask(said["connectivity"], len(backbones.strides(said["backbone_name"])))
        return spaces.get("connectivity").network(mask, {**said, "n_class": config["n_class"]})

    def plan(self, plain: nn.Module, config: Mapping) -> Plan:
        """The general rule's, of the encoder's groups alone."""
        plan = general_plan(plain, trace(plain, example(config["input_shape"], plain)))
        ours = tuple(s for s in plan.sets if all(m.module.startswith("backbone.") for m in s.members))
        return dataclasses.replace(plan, sets=ours)

    def structure(self, config) -> Hinged:
        """The same, for weights to be loaded into."""
        return self.hinged(self.plain(config), config)

    def load_weights_into(self, network: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
        """Load a retrained network's weights."""
        weights.load_strictly(network, state, source)

    def start(self, path) -> dict[str, Tensor]:
        """Weights of the network that a mask file leaves."""
        _, mask = self.read(path)
        return self.transfer(weights.load_weights(mask.checkpoint), mask)

    def read(self, path) -> tuple[np.ndarray, GroupMask]:
        """(connectivity mask, mask) of a mask file; UseError where its checkpoint is not there as it was."""
        mask = load_mask(path)
        if mask.space != self.name:
            raise UseError(f"{path}: a mask of space '{mask.space}', not of '{self.name}'")
        if mask.checkpoint is None:
            raise UseError(f"{path}: does not say which search it comes from; prune again")
        mask.check_weights(mask.checkpoint, path)
        said = mask.config["arch_options"]
        return read_mask(said["connectivity"], len(backbones.strides(said["backbone_name"]))), mask


def described(what: object) -> dict:
    """What a retrained connectivity run's checkpoint or network.safetensors says of its network, as options.

    Raises UseError for files of other networks, and for the baseline without a decoder.
    """
    if Path(str(what)).suffix == ".safetensors":
        said = weights.metadata(what)
        space, pairs, size = said.get("space"), said.get("connections"), said.get("features")
        mask = None
        if pairs is not None and size is not None:
            mask = mask_from(pairs, size)
        found = {**said, **forms.words_of(said)}
    else:
        state = weights.read_checkpoint(what)
        space, mask, found = state.get("space"), state.get("mask"), dict(weights.config_of(state))
        mask = mask.numpy() if isinstance(mask, Tensor) else None
    if space != "connectivity" or mask is None or not (mask[..., DOWN].any() or mask[..., UP].any()):
        raise UseError(f"{what}: not of a retrained connectivity network (runs/NAME/network.safetensors)")
    known = {name: found.get(name) for name in _NETWORK if name != "connectivity" and name in found}
    return {**known, "connectivity": mask_word(mask)}


def small_widths(mask: np.ndarray, options, state: Mapping[str, Tensor]) -> str | None:
    """Widths of the encoder in a connectivity network's weights; None where it has its own."""
    config = {**options, "widths": None}
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        backbone = spaces.get("connectivity").network(mask, config).backbone
    return widths_of(backbone, state)


register(SlimSpace.name, SlimSpace())
