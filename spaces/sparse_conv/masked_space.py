"""What spaces of networks with fine-grained masks have in common: their contract with the commands, and their files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from spaces.sparse_conv.masking import apply_masks, hard_masks
from sparsemask import weights
from sparsemask.costs import measure
from sparsemask.errors import UseError
from sparsemask.fine_masks import FineMasks


class MaskedSpace:
    """A space whose networks keep all their weights: masks say what is computed.

    A subclass has `fixed`, the names of a network's arguments, `supernet`, `build`, `load`, `save` and `dense_form`.
    """

    family = "sparse_conv"
    name: str  # as registered
    fixed: tuple[str, ...] = ()

    def arguments(self, config) -> dict:
        """What of a mapping or namespace of options are a network's arguments."""
        options = config if isinstance(config, Mapping) else vars(config)
        return {name: options[name] for name in self.fixed if options.get(name) is not None}

    def network(self, mask: FineMasks, config=None) -> nn.Module:
        """The network of a mask file, its masks hard; the weights are still random."""
        if mask.space != self.name:
            raise UseError(f"a mask of space '{mask.space}', not of '{self.name}'")
        options = {} if config is None else config if isinstance(config, Mapping) else vars(config)
        network = self.supernet({**options, **mask.config})
        apply_masks(network, mask.channels, mask.threshold)
        return network.eval()

    def transfer(self, checkpoint: Mapping[str, Tensor], mask: FineMasks, config=None) -> dict[str, Tensor]:
        """The same weights: masks select what is computed, nothing is cut out."""
        return dict(checkpoint)

    def cost(self, net: nn.Module, inputs):
        """Parameters, multiply-adds executed and milliseconds of `net`; inputs: their shape, or the inputs."""
        return measure(net, inputs)

    def config_of(self, network: nn.Module) -> dict:
        """What a mask file says of the network."""
        return network.config

    def connectivity_of(self, network: nn.Module):
        """The connectivity mask (L, L, 2) of a network whose connections were searched too, else None."""
        return None

    def run(self, network: nn.Module, inputs) -> Tensor:
        """The network on inputs."""
        return network(inputs)

    def run_dense(self, network: nn.Module, inputs) -> Tensor:
        """The same of the dense form."""
        return self.dense_form(network)(inputs)


def load(path: str | os.PathLike, build: Callable[[Mapping[str, Tensor], object, Mapping | None], nn.Module]):
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


def save(path: str | os.PathLike, network: nn.Module, space: str, masks: FineMasks | None = None) -> None:
    """Write a network to share: safetensors whose metadata says the space, its numbers and the masks' threshold."""
    threshold = 0.5 if masks is None else masks.threshold
    said = {"space": space, "threshold": float(threshold), **network.config}
    weights.save_safetensors(path, network.state_dict(), {k: json.dumps(v) for k, v in said.items()})
