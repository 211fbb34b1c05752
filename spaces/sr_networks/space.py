"""The space of super-resolution networks that people run, with masks over locations ("sr")."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sparsemask import costs
from sparsemask.config import flag
from sparsemask.errors import UseError
from sparsemask.flags import NetworkSection
from sparsemask.spaces import register
from sparsemask.spaces.described import build_described, describing
from sparsemask.spaces.protocols import Config
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork
from sparsemask.spaces.sparse_conv.masked_space import MaskedSpace
from sparsemask.spaces.sparsified import SparsifiedNetwork, begin
from sparsemask.spaces.sparsified.anchor import MaskAnchor
from sparsemask.spaces.sparsified.regions import FULL, POOLED
from sparsemask.spaces.sr_networks import checkpoints
from sparsemask.spaces.sr_networks.network import SRNetwork
from sparsemask.weights import load_strictly

if TYPE_CHECKING:
    from sparsemask import exporting

_EXAMPLE = (1, 3, 48, 48)  # the size by which layers are weighed; shares of multiply-adds do not depend on it
_DENSE = "network."  # prefix of the dense network's weights
_MASKS = "region_masks."  # and of the mask branches'
_BRANCH = "branch"  # of the masks, among the arguments in the network's word


@dataclass(frozen=True, kw_only=True, slots=True)
class SparsifiedSection(NetworkSection):
    """Which dense network is given masks: its weights say all."""

    weights: str | None = flag(
        help="of the dense network: a file that `sparsemask upscale` reads, or a name from `sparsemask models`"
    )
    dense: str | None = flag(help=None)  # the network in one word, as weights have it
    pretrained_model: str | None = flag(help="weights of a network with masks")


class SRSpace(MaskedSpace):
    """Networks of known architectures whose residual blocks and chains are computed where masks keep."""

    name = "sr"
    task = "super_resolution"
    fixed = ("dense",)
    section = SparsifiedSection

    def supernet(self, config: Config) -> SparsifiedNetwork:
        """Build the network with soft masks."""
        word = config.get("dense")
        if not word:
            raise UseError("--space sr: which network? --weights FILE names the dense one that is given masks")
        with describing("the network's word"):
            arguments = dict(json.loads(word))
            kind = checkpoints.ARCHITECTURES[arguments.pop("architecture")]
            branch = arguments.pop(_BRANCH, FULL)  # networks of versions before have no other
            network = kind(**arguments)
        return _sparsified(network, branch)

    def flags_of(self, path: str | os.PathLike[str]) -> dict[str, Any]:
        """What a dense network's weights say of the configuration: the network, its scale.

        Raises:
            UseError: weights of no known network.
        """
        network = checkpoints.load(path)
        return {"dense": _word(network, POOLED), "scale": network.scale}

    def start_masks(
        self, network: nn.Module, inputs: Tensor, keep: float, measure: Callable[..., Tensor] | None = None
    ) -> None:
        """Start the masks where the dense network changes its features most."""
        assert isinstance(network, SparsifiedNetwork)
        begin(network, inputs, keep, measure=measure)

    def teacher(self, path: str | os.PathLike[str]) -> nn.Module:
        """The dense network of a file, frozen."""
        return checkpoints.load(path).requires_grad_(False)

    def anchor(self, network: nn.Module) -> MaskAnchor:
        """Hold masks where they were started."""
        assert isinstance(network, SparsifiedNetwork)
        return MaskAnchor(network)

    def load_weights_into(self, network: nn.Module, state: Mapping[str, Tensor], source: object) -> None:
        """Start from weights with masks, or from a dense network's of any public layout."""
        assert isinstance(network, SparsifiedNetwork)
        if any(key.startswith(_DENSE) for key in state):
            load_strictly(network, state, source)
        else:
            load_strictly(network.network, checkpoints.build(state, source).state_dict(), source)

    def build(self, state: Mapping[str, Tensor], what: object, description: Mapping | None = None) -> SparsifiedNetwork:
        """Build the network of a state dict, in evaluation mode; its dense part says which."""
        dense = {key.removeprefix(_DENSE): value for key, value in state.items() if key.startswith(_DENSE)}
        found = checkpoints.recognise(dense, what) if dense else None
        if found is None:
            raise UseError(f"{what}: no weights of a super-resolution network with masks")
        kind, arguments, _ = found
        branch = FULL if "region_masks.0.spa_mask.0.weight" in state else POOLED
        network = build_described(lambda: _sparsified(kind(**arguments), branch), state, what)
        assert isinstance(network, SparsifiedNetwork)
        return network

    def dense_form(self, network: MaskedNetwork) -> nn.Module:
        """The network itself, without its masks."""
        assert isinstance(network, SparsifiedNetwork)
        return network.network

    def dense_cost(self, network: MaskedNetwork, inputs: Tensor) -> int:
        """Multiply-adds of the dense network."""
        return costs.multiply_adds(self.dense_form(network), [inputs])

    def exportable(
        self, network: nn.Module, batch: object, config: Config, mask: object = None
    ) -> exporting.Exportable:
        """As a function of images, with masks of even sides; see the modules `masked` and `dense` beside this one."""
        from sparsemask.spaces.sr_networks import dense, masked

        if isinstance(network, SRNetwork):
            return dense.exportable(network)
        assert isinstance(network, SparsifiedNetwork)
        return masked.exportable(network, lambda path: self.save(path, network, self.masks_of(network)))

    def prepare(self, colour: np.ndarray) -> Tensor:
        """Turn colours (H, W, 3) of 0 to 255 into an input (1, 3, H, W)."""
        return torch.from_numpy(colour).permute(2, 0, 1)[None]

    def draw_masks(
        self, inputs: Tensor, masks: Sequence[np.ndarray], path: str | os.PathLike, title: str | None = None,
        names: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """Draw data masks, bool arrays (H, W), over their image (1, 3, H, W) of 0 to 255."""
        from sparsemask.pictures.overlay import draw_masks

        picture = inputs[0].clamp(0, 255).round().to(torch.uint8).permute(1, 2, 0)
        draw_masks(picture.numpy(), masks, path, title, names)


def has_masks(state: Collection[str]) -> bool:
    """Whether a state dict, or its names, is that of a network with masks rather than of a dense one."""
    return any(key.startswith(_MASKS) for key in state)


def load_sparsified(path: str | os.PathLike[str]) -> SparsifiedNetwork:
    """Load a super-resolution network with masks from a run's checkpoint or its safetensors file.

    Raises:
        UseError: the file is missing, damaged, or of another network.
    """
    network = space.load(path).network
    assert isinstance(network, SparsifiedNetwork)
    return network


def _sparsified(network: SRNetwork, branch: str = POOLED) -> SparsifiedNetwork:
    network.fold()
    return SparsifiedNetwork(network, torch.zeros(_EXAMPLE), {"dense": _word(network, branch)}, branch)


def _word(network: SRNetwork, branch: str) -> str:
    """A network with masks in one word, as configurations have it."""
    return json.dumps({"architecture": network.architecture, **network.config, _BRANCH: branch})


space = SRSpace()
register(SRSpace.name, space)
