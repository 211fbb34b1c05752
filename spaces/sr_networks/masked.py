"""Super-resolution networks with masks, as they are run on large images and written for other programs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from sparsemask.exporting import Exportable, channels_last, pure
from sparsemask.spaces.sparsified.network import BRANCH_RADIUS, SparsifiedNetwork
from sparsemask.spaces.sr_networks.network import Span, SRNetwork, Stage, StagedNetwork
from sparsemask.spaces.sr_networks.tiles import upscale

_SIZE = (64, 96)  # of the exported example; sizes stay open, and even
_LEAST = 8  # half of the least height and width


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
    def radius(self) -> int:
        """Of the dense network, and for each mask in turn that of its branch."""
        return _with_branches(cast(int, self.dense.radius), len(self.network.regions))

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


class StagedEnlargement(nn.Module):
    """A network of stages with masks, each stage computed a band of rows at a time under the masks inside of it.

    Args:
        network: in evaluation mode, its dense part a :class:`StagedNetwork`.
    """

    multiple: ClassVar[int] = 2
    radius: ClassVar[int | None] = None

    def __init__(self, network: SparsifiedNetwork):
        super().__init__()
        self.network, self.dense = network, cast(StagedNetwork, network.network)
        self.scale, self.smallest = self.dense.scale, self.dense.smallest
        self.value_range, self.end_radius = self.dense.value_range, self.dense.end_radius

    @property
    def title(self) -> str:
        """The dense network's."""
        return f"{self.dense.title} with masks"

    def forward(self, images: Tensor) -> Tensor:
        """See :class:`SparsifiedNetwork`."""
        return self.network(images)

    def normalised(self, images: Tensor) -> Tensor:
        """The dense network's."""
        return self.dense.normalised(images)

    def begin(self, x: Tensor) -> Tensor:
        """The dense network's: no mask lies before the first stage."""
        return self.dense.begin(x)

    def end(self, features: Tensor, x: Tensor) -> Tensor:
        """The dense network's: no mask lies behind the last stage."""
        return self.dense.end(features, x)

    def stages(self) -> Iterator[Stage]:
        """The dense network's under masks; behind the last one the network says what was computed of all."""
        whole: dict[int, Tensor] = {}
        for stage in self.dense.stages():
            yield self._masked(stage, whole)
        if whole:  # nothing is told while memory is counted
            self.network.assembled([whole[number] for number in range(len(self.network.regions))])

    def _masked(self, stage: Stage, whole: dict[int, Tensor]) -> Stage:
        inside = lambda modules: stage.module in modules and stage.finishing not in modules
        masks: dict[int, Tensor] = {}

        def run(x: Tensor) -> Tensor:
            output, drawn = self.network.run_part(inside, x)
            masks.update(drawn)
            return output

        def place(rows: Span, columns: Span, shape: torch.Size) -> None:
            for number, mask in masks.items():
                if number not in whole:
                    whole[number] = torch.zeros(shape[0], 1, *shape[-2:], dtype=torch.bool)
                part = mask[..., rows.inner, columns.inner]
                whole[number][..., rows.kept, columns.kept] = part.to(whole[number].device)

        count = sum(inside(self.network.modules_of[region.convs[0]]) for region in self.network.regions)
        return stage._replace(run=run, place=place, radius=_with_branches(stage.radius, count))


def _with_branches(radius: int, count: int) -> int:
    """Pixels that a part sees with so many mask branches one after the other, even as these begin at even pixels."""
    radius += BRANCH_RADIUS * count
    return radius + radius % 2


def upscale_masked(
    network: SparsifiedNetwork,
    images: Tensor,
    memory: float | None = None,
    tile: int | None = None,
    ensemble: bool = False,
) -> Tensor:
    """As :func:`sparsemask.spaces.sr_networks.upscale`, with masks.

    Raises:
        UseError: a tile that is too small, or a budget that is.
    """
    staged = isinstance(network.network, StagedNetwork)
    whole = StagedEnlargement(network) if staged else MaskedEnlargement(network)
    return upscale(whole, images, memory, tile, ensemble)


def exportable(network: SparsifiedNetwork, save) -> Exportable:
    """Describe the network as a function from images (1, 3, H, W) to (1, 3, s·H, s·W), any even H and W.

    Args:
        network: on the CPU; its masks are exported hard.
        save: writes it as safetensors.
    """
    height, width = (torch.export.Dim(name, min=_LEAST, max=1 << 13) for name in ("half_height", "half_width"))
    plain, program = copy.deepcopy(network), copy.deepcopy(network)
    plain.multiplies, program.exported_in_rows = True, network.follow_masks()
    return Exportable(
        network=network,
        fast=lambda pictures: network(channels_last(pictures)),
        save=save,
        program=pure(program, _run),
        plain=pure(plain, _run),
        inputs={"picture": torch.zeros(1, 3, *_SIZE)},
        outputs=("larger",),
        dynamic=({2: 2 * height, 3: 2 * width},),
        multiple=2,
        least=2 * _LEAST,
        dense=pure(network.network, lambda net, picture: net(picture)),
    )


def _run(network: nn.Module, picture: Tensor) -> Tensor:
    """Run the network, and leave nothing of the forward pass in it."""
    assert isinstance(network, SparsifiedNetwork)
    output: Tensor = network(picture)
    network.kept, network.hard_kept, network.masks = [], [], []
    return output
