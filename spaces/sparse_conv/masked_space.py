"""Spaces of networks with fine-grained masks: the contract of their family, and their files."""

from __future__ import annotations

import json
import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from torch import Tensor, nn

from sparsemask import weights
from sparsemask.errors import UseError
from sparsemask.masks.spatial import FineMasks
from sparsemask.spaces.protocols import Config, Loaded, Space
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork
from sparsemask.spaces.sparse_conv.masking import apply_masks, hard_masks, threshold_of


class MaskedSpace(Space):
    """A space whose networks keep all their weights: masks say what is computed.

    Its networks are :class:`MaskedNetwork`. Beside what every space has, a subclass has `fixed`, `build`, `save`,
    `dense_form`, `dense_cost` and `draw_masks`.
    """

    family = "sparse_conv"
    fixed: ClassVar[tuple[str, ...]] = ()
    """Options that are a network's arguments."""

    @abstractmethod
    def supernet(self, config: Config) -> MaskedNetwork:
        """Build the network with soft masks, its weights drawn from torch's global generator."""

    @abstractmethod
    def build(self, state: Mapping[str, Tensor], what: object, said: Mapping | None = None) -> MaskedNetwork:
        """Build the network of a state dict, in evaluation mode on the CPU.

        Args:
            state: its weights (bare names).
            what: where they come from, for errors.
            said: what the file says of the network; the weights count where they tell it, too.

        Raises:
            UseError: weights of another network, or a network that neither they nor the file describe.
        """

    @abstractmethod
    def dense_form(self, network: MaskedNetwork) -> nn.Module:
        """The same weights without masks, in evaluation: what the network is timed against."""

    @abstractmethod
    def dense_cost(self, network: MaskedNetwork, inputs: Any) -> int:
        """Multiply-adds on a batch of inputs with everything kept."""

    @abstractmethod
    def draw_masks(
        self, inputs: Any, masks: Sequence[np.ndarray], path: str | os.PathLike, title: str | None = None,
        names: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """Draw data masks of one input into a picture file.

        Args:
            inputs: a batch of one.
            masks: of each module, bool, without batch and channel.
            path: the file.
            title: above the picture.
            names: of the modules; default: their numbers.
        """

    def load(self, path: str | os.PathLike) -> Loaded:
        """The network and the masks of a file: public checkpoint, run's checkpoint or safetensors."""
        network = load(path, self.build)
        return Loaded(network, self.masks_of(network))

    def save(self, path: str | os.PathLike, network: MaskedNetwork, mask: FineMasks | None = None) -> None:
        """Write a network to share as safetensors; mask: the masks whose threshold it has, None: 0.5, the argmax."""
        save(path, network, self.name, mask)

    def masks_of(self, network: MaskedNetwork) -> FineMasks:
        """The hard masks that a network has, as a mask file holds them, of no particular checkpoint."""
        return FineMasks(
            self.name, self.task, hard_masks(network), sha256="", threshold=threshold_of(network),
            config=self.config_of(network), connectivity=self.connectivity_of(network),
        )  # fmt: skip

    def configure(self, network: MaskedNetwork, config: Config) -> None:
        """Set on a loaded network what flags of evaluation say of it; default: nothing."""

    def published_row(self, network: MaskedNetwork, share: float) -> str | None:
        """Size and cost as the paper gives them, in a line, at a share of the multiply-adds; default: None."""
        return None

    def arguments(self, config: Config) -> dict:
        """What of a network's options are its arguments."""
        return {name: config[name] for name in self.fixed if config.get(name) is not None}

    def network(self, mask: FineMasks, config: Config | None = None) -> MaskedNetwork:
        """The network of a mask file, its masks hard; the weights are still random."""
        if mask.space != self.name:
            raise UseError(f"a mask of space '{mask.space}', not of '{self.name}'")
        network = self.supernet({**(config or {}), **mask.config})
        apply_masks(network, mask.channels, mask.threshold)
        return network.eval()

    def transfer(
        self, checkpoint: Mapping[str, Tensor], mask: FineMasks, config: Config | None = None
    ) -> dict[str, Tensor]:
        """The same weights: masks select what is computed, nothing is cut out."""
        return dict(checkpoint)

    def config_of(self, network: MaskedNetwork) -> dict:
        """What a mask file says of the network."""
        return dict(network.config)

    def connectivity_of(self, network: MaskedNetwork) -> np.ndarray | None:
        """The connectivity mask (L, L, 2) of a network whose connections were searched too, else None."""
        return None


def load(
    path: str | os.PathLike, build: Callable[[Mapping[str, Tensor], object, Mapping | None], MaskedNetwork]
) -> MaskedNetwork:
    """The network of a file, on the CPU: public checkpoint, run's checkpoint, safetensors.

    build(state, what, said): makes it, `said` being the file's configuration or None. The threshold of its masks is the
    file's, if it says one. Raises UseError when the file is missing, torn, or of no such network.
    """
    found = weights.read_checkpoint(path)
    shared = Path(path).suffix == ".safetensors"
    said = weights.metadata(path) if shared else found.get("config")
    network = build(weights.bare_state(found, path), path, said if isinstance(said, Mapping) else None)
    masks = said if shared else found.get("mask")
    if isinstance(masks, Mapping) and isinstance(masks.get("threshold"), float):
        apply_masks(network, hard_masks(network), masks["threshold"])
    return network


def save(path: str | os.PathLike, network: MaskedNetwork, space: str, masks: FineMasks | None = None) -> None:
    """Write a network to share: safetensors whose metadata says the space, its numbers and the masks' threshold."""
    threshold = 0.5 if masks is None else masks.threshold
    said = {"space": space, "threshold": float(threshold), **network.config}
    weights.save_safetensors(path, network.state_dict(), {k: json.dumps(v) for k, v in said.items()})
