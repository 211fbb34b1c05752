"""The blocks of a folded MobileNetV2 encoder as one native call."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsemask.backends import auto
from sparsemask.ops import dispatch
from sparsemask.spaces.backbones.mobilenet_v2 import LinearBottleneck, MobileNetV2
from sparsemask.spaces.specialized.bottleneck import MaskedBottleneck
from sparsemask.spaces.specialized.channel_masked_bottleneck import NarrowBottleneck


class EncoderChain:
    """A folded encoder's blocks, in one native call if that is the fastest way, else block by block.

    Args:
        backbone: folded; its weights must not change afterwards.
    """

    def __init__(self, backbone: MobileNetV2):
        from sparsemask.backends.native.chain import Chain

        self.blocks = [block for stage in backbone.bottlenecks for block in stage]
        self.ends = [len(stage) for stage in backbone.bottlenecks]
        self.deepest = backbone.deepest
        self.chain = Chain(links_of(backbone))

    @staticmethod
    def of(backbone: nn.Module) -> EncoderChain | None:
        """The chain of an encoder; None if it is no MobileNetV2, or one without blocks."""
        return EncoderChain(backbone) if type(backbone) is MobileNetV2 and len(backbone.bottlenecks) else None

    def __call__(self, backbone: MobileNetV2, x: Tensor) -> list[Tensor | None]:
        """The encoder's end points, deepest first; None for those that are not built."""
        chosen = dispatch.current(MaskedBottleneck.backend)
        native = dispatch.find("native")
        if chosen not in ("auto", "native") or native.why_not(x.device, x.dtype) or not x.numel():
            return backbone(x)
        if chosen == "native":
            return self._run(backbone, x)
        key = ("chain", self.chain.number, tuple(x.shape))
        # Raced against torch's own convolutions.
        return auto.BACKEND.race(
            key, x, lambda candidate: self._run(backbone, x) if candidate is native else _by(candidate, backbone, x)
        )

    def _run(self, backbone: MobileNetV2, x: Tensor) -> list[Tensor | None]:
        first = backbone.conv1(x)
        outs, masks = self.chain(F.relu6(first))
        size, count = first.shape[-2:], len(x)
        for block, mask, out in zip(self.blocks, masks, outs, strict=False):
            if isinstance(block, MaskedBottleneck) and block.unmasked:
                block.see_unmasked(count, tuple(size))
            elif isinstance(block, MaskedBottleneck):  # nn.Module.__setattr__ is slow
                vars(block)["seen"] = mask, mask, block.hard, block.hard, tuple(size)
            elif isinstance(block, NarrowBottleneck):
                vars(block)["seen"] = count, block.hard, block.hard, tuple(size)
            size = out.shape[-2:]
        points, at = [first], 0
        for count in self.ends:
            at += count
            points.append(outs[at - 1])
        if not self.deepest:
            points.append(outs[-1])
        return [*[None] * self.deepest, *points[::-1]]


def _by(candidate, backbone: MobileNetV2, x: Tensor) -> list[Tensor | None]:
    with dispatch.backend(candidate.name):
        return backbone(x)


def chain_of_one(block: LinearBottleneck) -> Callable[[Tensor], object]:
    """A folded block as a native call of its own."""
    from sparsemask.backends.native.chain import Chain

    return Chain([_described(block)])


def links_of(backbone: MobileNetV2) -> list[tuple]:
    """Descriptions of a folded encoder's blocks, and of the convolution behind them where it is built."""
    links: list[tuple] = [_described(block) for stage in backbone.bottlenecks for block in stage]
    if not backbone.deepest:
        links.append((None, (backbone.conv_last.weight, backbone.conv_last.bias)))
    return links


def _described(block: LinearBottleneck) -> tuple[tuple | None, tuple]:
    """Description of a folded block for :class:`sparsemask.backends.native.chain.Chain`."""
    masked = isinstance(block, MaskedBottleneck) and not block.unmasked
    branch = block.locate.described() if masked else None
    if isinstance(block, MaskedBottleneck):
        flags = block.hard if block.expand else [None, *block.hard]
    else:
        flags = [
            torch.zeros(len(w), dtype=torch.bool) for w in (block.conv2.weight, block.conv2.weight, block.conv3.weight)
        ]
    first = (block.conv1.weight, block.conv1.bias, flags[0]) if block.expand else (None, None, None)
    body = (block.conv2.weight, block.conv2.bias, flags[1], block.conv3.weight, block.conv3.bias, flags[2])
    return branch, (*first, *body, block.conv2.stride[0], block.shortcut)
