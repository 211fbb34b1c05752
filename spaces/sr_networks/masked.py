"""Super-resolution networks with masks, as they are run on large images and written for other programs."""

from __future__ import annotations

import copy
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.exporting import Exportable, channels_last, pure
from sparsemask.spaces.sparsified.network import BRANCH_RADIUS, SparsifiedNetwork
from sparsemask.spaces.sr_networks.network import SRNetwork
from sparsemask.spaces.sr_networks.tiles import Span, upscale

_SIZE = (64, 96)  # of the exported example; sizes stay open, and even


class MaskedEnlargement(nn.Module):
    """A super-resolution network with masks that is computed in tiles; masks are put together to the whole image's.

    Args:
        network: in evaluation mode, its dense part a :class:`SRNetwork`.
    """

    multiple: ClassVar[int] = 2  # mask branches work on every other pixel

    def __init__(self, network: SparsifiedNetwork):
        super().__init__()
        self.network, self.dense = network, cast(SRNetwork, network.network)
        self.scale, self.smallest = self.dense.scale, self.dense.smallest
        self._whole: list[Tensor] = []

    @property
    def radius(self) -> int | None:
        """Of the dense network, and for each mask in turn that of its branch."""
        if self.dense.radius is None:
            return None
        radius = self.dense.radius + BRANCH_RADIUS * len(self.network.regions)
        return radius + radius % 2

    @property
    def title(self) -> str:
        """The dense network's."""
        return f"{self.dense.title} with masks"

    def forward(self, images: Tensor) -> Tensor:
        """See :class:`SparsifiedNetwork`."""
        return self.network(images)

    def begin(self, shape: torch.Size) -> None:
        """Images of a shape are about to be computed in tiles."""
        self._whole = [
            torch.zeros(shape[0], 1, *shape[-2:], dtype=torch.bool) for _ in range(len(self.network.regions))
        ]

    def place(self, rows: Span, columns: Span) -> None:
        """Keep what is a tile's own of its masks."""
        for whole, mask in zip(self._whole, self.network.masks, strict=True):
            whole[..., rows.kept, columns.kept] = mask[..., rows.inner, columns.inner].to(whole.device)

    def end(self) -> None:
        """Let the network say what was computed of the whole image."""
        self.network.assembled(self._whole)
        self._whole = []


def upscale_masked(
    network: SparsifiedNetwork,
    images: Tensor,
    memory: float | None = None,
    tile: int | None = None,
    ensemble: bool = False,
) -> Tensor:
    """As :func:`sparsemask.spaces.sr_networks.upscale`, with masks.

    Raises:
        UseError: tiles of a network that sees the whole image, or sees farther than a tile pays for.
    """
    whole = MaskedEnlargement(network)
    if whole.radius is None:
        if tile or memory is not None:
            raise UseError(f"--tile and --memory: {whole.title} looks at the whole picture, and runs on it alone")
        tile = 0
    return upscale(whole, images, memory, tile, ensemble)


def exportable(network: SparsifiedNetwork, save) -> Exportable:
    """Describe the network as a function from images (1, 3, H, W) to (1, 3, s·H, s·W), any even H and W.

    Args:
        network: on the CPU; its masks are exported hard.
        save: writes it as safetensors.
    """
    height, width = (torch.export.Dim(name, min=8, max=1 << 13) for name in ("half_height", "half_width"))
    plain = copy.deepcopy(network)
    plain.multiplies = True
    return Exportable(
        network=network,
        fast=lambda pictures: network(channels_last(pictures)),
        save=save,
        program=pure(copy.deepcopy(network), _run),
        plain=pure(plain, _run),
        inputs={"picture": torch.zeros(1, 3, *_SIZE)},
        outputs=("larger",),
        dynamic=({2: 2 * height, 3: 2 * width},),
        multiple=2,
    )


def _run(network: nn.Module, picture: Tensor) -> Tensor:
    """Run the network, and leave nothing of the forward pass in it."""
    assert isinstance(network, SparsifiedNetwork)
    output: Tensor = network(picture)
    network.kept, network.hard_kept, network.masks = [], [], []
    return output
