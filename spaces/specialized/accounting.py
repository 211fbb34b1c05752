"""Multiply-adds of a specialised network: with everything kept, and as executed by the last forward pass."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sparsemask.masks import DOWN, UP
from sparsemask.spaces.connectivity.encoding import read_mask
from sparsemask.spaces.connectivity.pruned_network import PrunedNetwork
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork
from sparsemask.spaces.specialized.masks import MaskedModule
from sparsemask.spaces.specialized.stage import StageMasks

_WORDS = {"LinearBottleneck": "block ", "Decoders_": "stage "}
_SHORT = re.compile(f"({'|'.join(_WORDS)})")


@lru_cache(maxsize=64)
def dense_multiply_adds(mask: str, features: int, config: tuple, size: tuple[int, int]) -> int:
    """Count the multiply-adds of a connectivity network on one image, by a twin on the meta device.

    Args:
        mask: the mask as a word (:func:`mask_word`).
        features: of the encoder, L.
        config: backbone (its name, or the module), depth, input channels, classes, options of the backbone.
        size: height and width of the image.
    """
    backbone, depth, channels, classes, options = config
    with torch.device("meta"):
        twin = PrunedNetwork(read_mask(mask, features), backbone, depth, channels, classes, **dict(options)).eval()
        image = torch.empty(1, channels, *size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        twin(image)
    return counter.get_total_flops() // 2


def number(name: str) -> int:
    """A stage's number, from its name."""
    return int(name.rpartition("_")[2])


class Accounts(MaskedNetwork):
    """Kept fractions and multiply-adds of a :class:`SpecializedNetwork`'s last forward pass."""

    _word: str
    """Its mask in a word."""
    masked: dict[str, MaskedModule]
    """Its modules with masks, by name."""

    def connections(self, i: int) -> Iterator[tuple[int, int]]:
        """(kind, feature) of the connections that stage i reads."""
        for (kind, j), takers in self._takers.items():
            if i in takers:
                yield kind, j

    def _counts(self, hard: bool) -> list[list[tuple[int, Tensor]]]:
        return [
            module.counted(self._reads(number(name), hard), hard)
            if isinstance(module, StageMasks)
            else module.counted(hard)
            for name, module in self.masked.items()
        ]

    def _reads(self, i: int, hard: bool) -> list[tuple[int, tuple[int, int], Tensor | float]]:
        """(channels, size, fraction of channels present) of the features that stage i reads."""
        sizes = [tuple(-(-n // stride) for n in self._counted) for stride in self.backbone.strides]
        reads = []
        for kind, j in self.connections(i):
            source = f"Decoders_{j - 1}"
            if kind == DOWN or j == 0:
                reads.append((self.backbone.channels[j], (1, 1) if kind == UP else sizes[j], 1.0))
            else:
                present = self.stage_masks[source].present(hard) if source in self.stage_masks else 1.0
                reads.append((self.fc_conv.in_channels, sizes[j - 1], present))
        return reads

    @property
    def dense_multiply_adds(self) -> int:
        """Multiply-adds on one image of the last size with everything kept, without mask branches."""
        return dense_multiply_adds(self._word, len(self.mask), self._dense_twin, self._counted)

    @property
    def masks(self) -> list[Tensor]:
        """Each masked module's data mask; of modules without one everything is kept."""
        return [module.mask for module in self.masked.values()]

    @property
    def mask_names(self) -> list[str]:
        """Short name of each masked module, for drawings; empty for modules without a data mask."""
        return [
            _SHORT.sub(lambda match: _WORDS[match[1]], name.rpartition(".")[2]).replace("_", ".")
            if module.locate is not None
            else ""
            for name, module in self.masked.items()
        ]

    @property
    def kept(self) -> list[Tensor]:
        """By module: the soft share of each of its products that is kept, of every sample."""
        return [torch.stack([share for _, share in counts]) for counts in self._counts(False)]

    @property
    def hard_kept(self) -> list[Tensor]:
        """The same of hard masks."""
        return [torch.stack([share for _, share in counts]) for counts in self._counts(True)]

    @property
    def kept_weights(self) -> list[Tensor]:
        """By module: each product's share of the dense network's multiply-adds."""
        total = self.dense_multiply_adds
        device = self.fc_conv.weight.device
        return [torch.tensor([count / total for count, _ in counts], device=device) for counts in self._counts(True)]

    @property
    def kept_base(self) -> Tensor | float:
        """Share of the dense network's multiply-adds that no mask drops, mask branches with them."""
        total = self.dense_multiply_adds
        masked = sum(count for counts in self._counts(True) for count, _ in counts)
        base = total - masked + sum(module.overhead() for module in self.masked.values())
        for i in {i for takers in self._takers.values() for i in takers}:  # stages without masks read fewer channels
            if f"Decoders_{i}" not in self.stage_masks:
                for channels, size, present in self._reads(i, not self.training):
                    base = base - channels * self.fc_conv.in_channels * size[0] * size[1] * (1 - present)
        final = max(i for takers in self._takers.values() for i in takers)
        if f"Decoders_{final}" in self.stage_masks:  # the classifier reads the channels present in the last stage
            height, width = (-(-n // self.backbone.strides[final]) for n in self._counted)
            present = self.stage_masks[f"Decoders_{final}"].present(not self.training)
            base = base - self.fc_conv.weight.numel() * height * width * (1 - present)
        return base / total
