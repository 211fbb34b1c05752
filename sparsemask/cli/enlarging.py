"""Networks by which `sparsemask upscale` enlarges pictures: with masks, or dense."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sparsemask import datasets, models
from sparsemask.devices import Arithmetic
from sparsemask.errors import UseError
from sparsemask.finite import check_output
from sparsemask.inference import with_fast_convolutions
from sparsemask.pictures.files import Picture, encoded
from sparsemask.spaces import sr_networks
from sparsemask.spaces.smsr.checkpoints import load_smsr
from sparsemask.spaces.smsr.dense import DenseForm
from sparsemask.spaces.smsr.network import SMSR
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork
from sparsemask.spaces.sparsified import SparsifiedNetwork
from sparsemask.spaces.sr_networks.masked import upscale_masked
from sparsemask.spaces.sr_networks.space import has_masks, load_sparsified
from sparsemask.spaces.sr_networks.tiles import resident
from sparsemask.sparse import repeatable
from sparsemask.weights import bare_state, read_checkpoint

LARGE = 300_000  # input pixels above which an SMSR runs in tiles by default
TILE = 256
# Bytes that an SMSR of 64 channels takes for a pixel of its input: at once, and in tiles of TILE.
WHOLE, IN_TILES = 3600, 1300


class Enlarger(ABC):
    """A network and how it is run."""

    masked: ClassVar[bool] = False
    """Whether it computes by masks that can be drawn."""
    network: nn.Module
    scale: int
    source: str
    """Its file, or the name of a model that ships."""

    @property
    @abstractmethod
    def title(self) -> str:
        """What it is, in a few words."""

    @abstractmethod
    def compute(self, pixels: Tensor, tile: int | None, memory: float | None, ensemble: bool) -> Tensor:
        """See :meth:`run`, which says what to do where memory is too small."""

    @abstractmethod
    def words(self) -> str:
        """What was computed for the last picture, for the line about it."""

    def draw_masks(self, image: Picture, name: str, folder: Path) -> list[Path]:
        """Draw where the last picture was computed; default: nowhere."""
        return []

    def enlarge(
        self,
        image: Picture,
        where: Arithmetic,
        tile: int | None = None,
        memory: float | None = None,
        ensemble: bool = False,
    ) -> Picture:
        """The picture, larger: what :meth:`run` makes of its colours, its alpha by bicubic.

        Args:
            image: any picture.
            where: device of the network, and its arithmetic.
            tile, memory, ensemble: as of :meth:`run`.

        Raises:
            UseError: memory is too small, or the network gives values that are not finite.
        """
        pixels = as_input(image, where)
        with repeatable(), where.context():
            output = check_output(self.run(pixels, tile, memory, ensemble), self.network)
        return image.enlarged(output[0].permute(1, 2, 0).float().cpu().numpy())

    def run(self, pixels: Tensor, tile: int | None, memory: float | None, ensemble: bool) -> Tensor:
        """Enlarge a picture's pixels.

        Args:
            pixels: (1, 3, H, W) of 0 to 255.
            tile: side of the tiles, 0: none, None: chosen.
            memory: bytes that the process may take; None: the network's own default.
            ensemble: mean over eight flips.

        Returns:
            (1, 3, s·H, s·W), not clamped.

        Raises:
            UseError: memory is too small.
        """
        try:
            return self.compute(pixels, tile, memory, ensemble)
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and "memory" not in str(error):
                raise
            size = f"{pixels.shape[-1]}x{pixels.shape[-2]}"
            less = max(64, tile // 2) if tile else TILE
            raise UseError(f"not enough memory for {size} pixels: try --tile {less}") from None


def as_input(image: Picture, where: Arithmetic) -> Tensor:
    """A picture's colours as the networks take them: (1, 3, H, W) of 0 to 255."""
    return torch.from_numpy(image.colour).permute(2, 0, 1)[None].to(where.device)


class Masked(Enlarger):
    """A network that skips what its masks drop."""

    masked = True
    network: MaskedNetwork

    @abstractmethod
    def without_masks(self) -> nn.Module:
        """The same weights, everything computed: what time saved is measured against."""

    def locations(self) -> list[np.ndarray]:
        """Where each module computed of the last picture, bool (H, W)."""
        return [mask[0, 0].cpu().numpy() for mask in self.network.masks]

    def words(self) -> str:
        """See :class:`Enlarger`."""
        shares = [float(mask.float().mean()) for mask in self.network.kept]
        return f"computed {100 * np.mean(shares):.0f} % of channels x places ({self.source})"

    def draw_masks(self, image: Picture, name: str, folder: Path) -> list[Path]:
        """Draw the masks: all with their keep ratios on one page, and each over the image, pixel by pixel."""
        from PIL import Image

        from sparsemask.files import write_bytes
        from sparsemask.pictures.overlay import draw_masks, overlay

        pixels = np.clip(np.rint(image.colour), 0, 255).astype(np.uint8)
        masks = self.locations()
        folder.mkdir(parents=True, exist_ok=True)
        paths = [draw_masks(pixels, masks, folder / f"{name}_masks.png", f"Where each module computes: {name}")]
        for number, mask in enumerate(masks, 1):
            path = folder / f"{name}_module{number}.png"
            write_bytes(path, encoded(Image.fromarray(overlay(pixels, mask)), "PNG"))
            paths.append(path)
        return paths


class Sparsified(Masked):
    """A dense network that was given masks."""

    network: SparsifiedNetwork

    def __init__(self, network: SparsifiedNetwork, dense: sr_networks.SRNetwork, source: str):
        self.network, self.scale, self.source = network, dense.scale, source
        self.dense = with_fast_convolutions(dense)

    @property
    def title(self) -> str:
        """See :class:`Enlarger`."""
        return f"{self.dense.title} with masks"

    def compute(self, pixels: Tensor, tile: int | None, memory: float | None, ensemble: bool) -> Tensor:
        """See :class:`Enlarger`."""
        with torch.no_grad():
            return upscale_masked(self.network, pixels, memory, tile, ensemble)

    def without_masks(self) -> nn.Module:
        """See :class:`Masked`."""
        return self.dense


class SMSREnlarger(Masked):
    """An SMSR."""

    network: SMSR

    def __init__(self, network: SMSR, source: str):
        self.network, self.scale, self.source = network, network.scale, source

    @property
    def title(self) -> str:
        """See :class:`Enlarger`."""
        return f"SMSR x{self.scale}"

    def compute(self, pixels: Tensor, tile: int | None, memory: float | None, ensemble: bool) -> Tensor:
        """See :class:`Enlarger`."""
        from sparsemask.spaces import sparse_conv

        count = pixels.shape[-1] * pixels.shape[-2]
        if tile is None:
            tile = TILE if count > LARGE else 0
            if memory is not None:
                room = (memory - resident()) * 64 / self.network.n_feats
                tile = 0 if WHOLE * count <= room else TILE
                if tile and IN_TILES * count > room:
                    least = memory + IN_TILES * count * self.network.n_feats / 64 - (memory - resident())
                    size = f"{pixels.shape[-1]}x{pixels.shape[-2]}"
                    raise UseError(
                        f"a memory of {memory / 1e6:.0f} MB is too small for {size} pixels with {self.title}: about "
                        f"{least / 1e6:.0f} MB are needed"
                    )
        return sparse_conv.upscale(self.network, pixels, tile, ensemble)

    def without_masks(self) -> nn.Module:
        """See :class:`Masked`."""
        return DenseForm(self.network)


class Dense(Enlarger):
    """A network that computes everything."""

    network: sr_networks.SRNetwork

    def __init__(self, network: sr_networks.SRNetwork, source: str):
        self.network, self.scale, self.source = with_fast_convolutions(network), network.scale, source

    @property
    def title(self) -> str:
        """See :class:`Enlarger`."""
        return self.network.title

    def compute(self, pixels: Tensor, tile: int | None, memory: float | None, ensemble: bool) -> Tensor:
        """See :class:`Enlarger`."""
        with torch.no_grad():
            return sr_networks.upscale(self.network, pixels, memory, tile, ensemble)

    def words(self) -> str:
        """See :class:`Enlarger`."""
        return f"{self.title}: {self.source}"


def find_enlarger(weights: str | None, scale: int | None) -> Enlarger:
    """The network of `weights`; without it, of what lies in $SPARSEMASK_WEIGHTS or the cache, or of what ships.

    Args:
        weights: a file, or the name of a model that ships.
        scale: that it must have; None: any.

    Raises:
        UseError: there is none, one of another scale, or weights of a network that is not known.
    """
    path = None if weights is None else models.path_of(weights, "super_resolution")
    if path is None:
        for name in [f"smsr_x{scale}"] if scale else ["smsr_x2", "smsr_x3", "smsr_x4"]:
            path = path or datasets.backbone_weights(name, None)
    shipped = models.of_scale(scale) if path is None else None
    if shipped is not None:
        path, weights = str(shipped.path), shipped.name
    if path is None:
        raise UseError(
            f"no weights for x{scale or 2}: give --weights FILE, or put smsr_x{scale or 2}.pt into "
            f"$SPARSEMASK_WEIGHTS or {datasets.cache() / 'weights'}"
        )
    enlarger = _load(path, weights or path)
    if scale not in (None, enlarger.scale):
        raise UseError(f"--scale {scale}: the weights {path} magnify by {enlarger.scale}")
    return enlarger


def _load(path: str, source: str) -> Enlarger:
    state = bare_state(read_checkpoint(path), path)
    if "body.0.body.ch_mask" in state:
        return SMSREnlarger(load_smsr(path), source)
    if has_masks(state):
        network = load_sparsified(path)
        assert isinstance(network.network, sr_networks.SRNetwork)
        return Sparsified(network, network.network, source)
    return Dense(sr_networks.build(state, path), source)
