"""A space of a user's own: which hidden channels does a classifier of two convolutions need?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from sparsemask import spaces, weights
from sparsemask.config import flag
from sparsemask.errors import UseError
from sparsemask.flags import NetworkSection
from sparsemask.options import positive
from sparsemask.spaces import Loaded, Space
from sparsemask.spaces.described import build_described, describing


class ToyNetwork(nn.Module):
    """Images (N, 3, H, W) to logits (N, n_class)."""

    def __init__(self, hidden: int, n_class: int):
        super().__init__()
        self.first = nn.Conv2d(3, hidden, 3, padding=1)
        self.last = nn.Conv2d(hidden, n_class, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(x))).mean((2, 3))


@dataclass(frozen=True, kw_only=True, slots=True)
class ToySection(NetworkSection):
    """How wide the network is."""

    hidden: int = flag(8, positive, help="channels between the convolutions (default: 8)")


class ToySpace(Space):
    """Masks are bool (hidden,): the channels that stay."""

    family = "group_sparsity"
    name = "toy_channels"
    task = "classification"
    section = ToySection

    def supernet(self, config) -> nn.Module:
        options = config
        return ToyNetwork(options["hidden"], options.get("n_class", 4))

    def network(self, mask: np.ndarray, config) -> nn.Module:
        options = config
        return self.supernet({**options, "hidden": int(mask.sum())})

    def transfer(self, checkpoint: Mapping[str, Tensor], mask: np.ndarray, config) -> dict[str, Tensor]:
        stays = torch.from_numpy(mask)
        rows = {name: checkpoint[name][stays] for name in ("first.weight", "first.bias")}
        return {**checkpoint, **rows, "last.weight": checkpoint["last.weight"][:, stays]}

    def save(self, path, network: nn.Module, mask: np.ndarray) -> None:
        said = {"space": self.name, "mask": mask.tolist(), "n_class": network.last.out_channels}
        weights.save_safetensors(path, network.state_dict(), {name: json.dumps(value) for name, value in said.items()})

    def load(self, path) -> Loaded:
        state = weights.load_weights(path)
        said = weights.metadata(path)
        if said.get("space") != self.name:
            raise UseError(f"{path}: of no toy network")
        with describing(path):
            mask = np.array(said["mask"], dtype=bool)
        return Loaded(build_described(lambda: self.network(mask, said), state, path), mask)


TOY = spaces.register(ToySpace.name, ToySpace())
