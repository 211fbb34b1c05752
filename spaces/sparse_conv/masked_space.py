"""Base class of spaces of networks with fine-grained masks, and their files."""

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
from sparsemask.spaces.sparse_conv.plan import known_plans


class MaskedSpace(Space):
    """A space whose networks keep all their weights; masks select what is computed.

    Its networks are :class:`MaskedNetwork`. Besides the methods of every space, a subclass has `fixed`, `build`,
    `dense_form`, `dense_cost` and `draw_masks`.
    """

    family = "sparse_conv"
    fixed: ClassVar[tuple[str, ...]] = ()
    """Names of the options that are arguments of a network."""

    @abstractmethod
    def supernet(self, config: Config) -> MaskedNetwork:
        """Build the network with soft masks, its weights drawn from torch's global generator."""

    @abstractmethod
    def build(self, state: Mapping[str, Tensor], what: object, description: Mapping | None = None) -> MaskedNetwork:
        """Build the network of a state dict, in evaluation mode on the CPU.

        Args:
            state: its weights (bare names).
            what: where they come from, for errors.
            description: the file's description of the network, if any; values that weights determine override it.

        Raises:
            UseError: weights of another network, or a network that is not fully described.
        """

    @abstractmethod
    def dense_form(self, network: MaskedNetwork) -> nn.Module:
        """The same weights without masks, in evaluation mode: the baseline for timing."""

    @abstractmethod
    def dense_cost(self, network: MaskedNetwork, inputs: Any) -> int:
        """Multiply-adds on a batch of inputs with everything kept."""

    @abstractmethod
    def draw_masks(
        self, inputs: Any, masks: Sequence[np.ndarray], path: str | os.PathLike, title: str | None = None,
        names: Sequence[str] | None = None,
    ) -> None:  # fmt: skip
        """Draw data masks of one input into an image file.

        Args:
            inputs: a batch of one.
            masks: of each module, bool, without batch and channel.
            path: the file.
            title: above the image.
            names: of the modules; default: their numbers.
        """

    def load(self, path: str | os.PathLike) -> Loaded:
        """Load the network and the masks of a file: public checkpoint, run's checkpoint or safetensors."""
        network = load(path, self.build)
        return Loaded(network, self.masks_of(network))

    def save(self, path: str | os.PathLike, network: MaskedNetwork, mask: FineMasks | None = None) -> None:
        """Write a network as a safetensors file; mask: masks with its threshold, None: 0.5, the argmax."""
        save(path, network, self.name, mask)

    def masks_of(self, network: MaskedNetwork) -> FineMasks:
        """Return the hard masks of a network, as a mask file holds them, without a checkpoint."""
        return FineMasks(
            self.name, self.task, hard_masks(network), sha256="", threshold=threshold_of(network),
            config=self.config_of(network), connectivity=self.connectivity_of(network),
        )  # fmt: skip

    def configure(self, network: MaskedNetwork, config: Config) -> None:
        """Apply flags of evaluation to a loaded network; default: none."""

    def published_row(self, network: MaskedNetwork, share: float) -> str | None:
        """Return a line with size and cost in the paper's convention; default: None.

        Args:
            network: of the space.
            share: executed multiply-adds over those with everything kept.
        """
        return None

    def arguments(self, config: Config) -> dict:
        """Select a network's arguments from options."""
        return {name: config[name] for name in self.fixed if config.get(name) is not None}

    def network(self, mask: FineMasks, config: Config | None = None) -> MaskedNetwork:
        """Build the network of a mask file, its masks hard, with random weights."""
        if mask.space != self.name:
            raise UseError(f"a mask of space '{mask.space}', not of '{self.name}'")
        network = self.supernet({**(config or {}), **mask.config})
        apply_masks(network, mask.channels, mask.threshold)
        return network.eval()

    def transfer(
        self, checkpoint: Mapping[str, Tensor], mask: FineMasks, config: Config | None = None
    ) -> dict[str, Tensor]:
        """Return the supernet's weights: masks select what is computed, nothing is removed."""
        return dict(checkpoint)

    def size_words(self, shape: Sequence[int]) -> str:
        """Return an input's size as text; default: an image's, width first."""
        return f"{shape[-1]}x{shape[-2]}"

    def config_of(self, network: MaskedNetwork) -> dict:
        """Return the description of a network for a mask file."""
        return dict(network.config)

    def connectivity_of(self, network: MaskedNetwork) -> np.ndarray | None:
        """Return the connectivity mask (L, L, 2) of a network whose connections were searched too, else None."""
        return None


def load(
    path: str | os.PathLike, build: Callable[[Mapping[str, Tensor], object, Mapping | None], MaskedNetwork]
) -> MaskedNetwork:
    """Load a network from a public checkpoint, a run's checkpoint or a safetensors file.

    Args:
        path: the file.
        build: (state, what, description), makes the network; `description` is the file's configuration or None.

    Returns:
        The network on the CPU; its masks have the file's threshold, if the file holds one, and it follows the plans
        that were made for it (see :mod:`sparsemask.spaces.sparse_conv.plan`).

    Raises:
        UseError: the file is missing, damaged, or of another network.
    """
    checkpoint = weights.read_checkpoint(path)
    shared = Path(path).suffix == ".safetensors"
    description = weights.metadata(path) if shared else checkpoint.get("config")
    network = build(
        weights.bare_state(checkpoint, path), path, description if isinstance(description, Mapping) else None
    )
    masks = description if shared else checkpoint.get("mask")
    if isinstance(masks, Mapping) and isinstance(masks.get("threshold"), float):
        apply_masks(network, hard_masks(network), masks["threshold"])
    network.plans = known_plans(path, network)
    return network


def save(path: str | os.PathLike, network: MaskedNetwork, space: str, masks: FineMasks | None = None) -> None:
    """Write a network as safetensors, atomically, with its space, arguments and masks' threshold as metadata.

    Args:
        path: the file.
        network: its weights include the masks' logits.
        space: name of its space.
        masks: with the threshold; None: 0.5, the argmax.
    """
    threshold = 0.5 if masks is None else masks.threshold
    entries = {"space": space, "threshold": float(threshold), **network.config}
    weights.save_safetensors(path, network.state_dict(), {k: json.dumps(v) for k, v in entries.items()})
