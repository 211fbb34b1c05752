"""Small networks: an encoder with the decoder of a mask, and the fully convolutional baseline."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.inference import fold_pairs
from sparsemask.masks import DOWN, UP
from sparsemask.masks.decoder import POINTWISE, DecoderMask, check_decoder, deepest_end_point
from sparsemask.spaces.backbones import truncate_
from sparsemask.spaces.connectivity.operations import OPERATION_MODULES, ContextBlock
from sparsemask.spaces.connectivity.search_network import (
    batch_norm_errors,
    build_backbone,
    decode,
    init_convolutions,
    upsample,
)
from sparsemask.spaces.connectivity.widths import layer_names, narrow_


class Stage(nn.Module):
    """Parameters of one decoder stage: a 1x1 convolution per kept connection, keyed by its feature, and what follows.

    `operation` and `context` are None in the published space, where batch norm and relu6 end a stage.
    """

    def __init__(
        self,
        down: dict[int, int],
        up: dict[int, int],
        width: int,
        momentum: float,
        operation: int = POINTWISE,
        context: bool = False,
    ):
        super().__init__()
        self.down_convs = nn.ModuleDict({str(j): nn.Conv2d(c, width, 1, bias=False) for j, c in down.items()})
        self.up_convs = nn.ModuleDict({str(j): nn.Conv2d(c, width, 1, bias=False) for j, c in up.items()})
        self.bn = nn.BatchNorm2d(width, momentum=momentum)
        layer = OPERATION_MODULES[operation]
        self.operation = None if layer is None else layer(width, momentum)
        self.context = ContextBlock(width, momentum) if context else None

    def refine(self, x: Tensor) -> Tensor:
        """What follows the activated sum of the inputs, (B, width, h, w)."""
        if self.operation is not None:
            x = self.operation(x)
        return x if self.context is None else self.context(x)

    @torch.no_grad()
    def fold(self) -> None:
        """Fold all batch norms into the convolutions, in place and irreversibly.

        The stage's own scales all of its 1x1 convolutions; its shift joins one of them (a constant commutes with
        bilinear upsampling).
        """
        if isinstance(self.bn, nn.BatchNorm2d):  # else it was folded into the stage's only convolution before
            convs = [*self.down_convs.values(), *self.up_convs.values()]
            scale = self.bn.weight * torch.rsqrt(self.bn.running_var + self.bn.eps)
            for conv in convs:
                conv.weight.mul_(scale.view(-1, 1, 1, 1))
                conv.bias = nn.Parameter(torch.zeros_like(scale))
            convs[0].bias.copy_(self.bn.bias - self.bn.running_mean * scale)
            self.bn = nn.Identity()
        for part in (self.operation, self.context):
            if part is not None:
                part.fold()


@dataclass(frozen=True)
class Structure:
    """A checked mask of either space, told by stages.

    Attributes:
        connections: bool (L, L, 2).
        live: stages that the output depends on, deepest first.
        output: the stage that the classifier reads.
        widths: channels of each stage.
        operations: of each stage, by number.
        context: the stage with the context block, if any.
    """

    connections: np.ndarray
    live: list[int]
    output: int
    widths: list[int]
    operations: list[int]
    context: int | None

    @classmethod
    def of(cls, mask: np.ndarray | DecoderMask, depth: int) -> Structure:
        """Of a mask; depth: channels of the stages of a published one."""
        if isinstance(mask, DecoderMask):
            stages, widths, operations = mask.stages, mask.widths.tolist(), mask.operations.tolist()
            return cls(mask.connections, stages, mask.output, widths, operations, stages[0] if mask.context else None)
        length = len(mask)
        return cls(mask, _reaching_output(mask), length - 1, [depth] * length, [POINTWISE] * length, None)

    @property
    def takers(self) -> dict[tuple[int, int], list[int]]:
        """Live stages that read feature j of a kind, by (kind, j)."""
        features = range(len(self.connections))
        return {(k, j): [i for i in self.live if self.connections[i, j, k]] for j in features for k in (DOWN, UP)}


class PrunedNetwork(nn.Module):
    """Encoder and the decoder of a connectivity mask (arXiv 1904.07642, section 3.3), or of the wider space.

    Args:
        mask: bool (L, L, 2), see :mod:`sparsemask.masks`, or a decoder of the wider space, see
            :mod:`sparsemask.masks.decoder`; L is the backbone's number of end points.
        backbone_name: name of a registered backbone, or a backbone already built, which is truncated in place.
        depth: channels of every decoder stage; a decoder of the wider space says its widths itself.
        in_channels: channels of the input image.
        num_classes: channels of the output.
        bn_momentum: of all running statistics.
        widths: channels of the backbone's layers where they differ from the registered backbone's, see
            :mod:`sparsemask.spaces.connectivity.widths`.
        whole_encoder: whether to build what lies behind the deepest end point in use, too.
        backbone_options: further arguments of the backbone's builder, such as its form.

    Of the encoder, only what the output depends on is built (:func:`sparsemask.spaces.backbones.truncate_`).
    Stages of a published mask that do not reach the output keep their (frozen) parameters, so that public checkpoints
    load, but are not computed. A decoder of the wider space has no such stages.

    Raises:
        UseError: a mask of another number of features, an unknown backbone, or widths that do not fit.
    """

    def __init__(
        self,
        mask: np.ndarray | DecoderMask,
        backbone_name: str | nn.Module = "mobilenet_v2",
        depth: int = 64,
        in_channels: int = 3,
        num_classes: int = 21,
        bn_momentum: float = 0.0003,
        widths: str | None = None,
        whole_encoder: bool = False,
        **backbone_options,
    ):
        super().__init__()
        self.backbone = build_backbone(backbone_name, in_channels, bn_momentum, backbone_options)
        self.widths = widths
        self.mask = check_decoder(mask, len(self.backbone.channels))
        structure = Structure.of(self.mask, depth)
        layers = layer_names(self.backbone) if widths else None
        if not whole_encoder:
            truncate_(self.backbone, deepest_end_point(structure.connections[structure.live]))
        if widths:
            narrow_(self.backbone, widths, in_channels, layers)
        channels = list(self.backbone.channels)
        self.stage_widths = structure.widths
        stages = {}
        for i, row in enumerate(structure.connections):
            if row.any():
                width = structure.widths[i]
                down = {int(j): channels[j] for j in np.flatnonzero(row[:, DOWN])}
                up = {int(j): structure.widths[j - 1] if j else channels[0] for j in np.flatnonzero(row[:, UP])}
                stage = Stage(down, up, width, bn_momentum, structure.operations[i], i == structure.context)
                stages[f"Decoders_{i}"] = stage.requires_grad_(i in structure.live)
        self.decoders = nn.ModuleDict(stages)
        self.fc_conv = nn.Conv2d(structure.widths[structure.output], num_classes, 1)
        init_convolutions(self.decoders, self.fc_conv)
        self.merged = nn.ModuleDict()  # filled by fold()
        self._takers = structure.takers

    def _convs(self, kind: int, j: int) -> list[nn.Conv2d]:
        """The convolutions of feature j, one per stage that takes it."""
        stages = [self.decoders[f"Decoders_{i}"] for i in self._takers[kind, j]]
        return [(stage.up_convs if kind == UP else stage.down_convs)[str(j)] for stage in stages]

    @torch.no_grad()
    def fold(self) -> None:
        """Turn into the evaluation form, in place and irreversibly: no batch norms, one convolution per feature."""
        self.eval()
        fold_pairs(self.backbone)
        for stage in self.decoders.values():
            stage.fold()
        merged = {}
        for (kind, j), takers in self._takers.items():
            if takers:
                convs = self._convs(kind, j)
                weight = torch.cat([conv.weight for conv in convs])
                merged[f"{kind}_{j}"] = joint = nn.Conv2d(weight.shape[1], len(weight), 1).to(weight)
                joint.weight.copy_(weight)
                joint.bias.copy_(torch.cat([conv.bias for conv in convs]))
        for stage in self.decoders.values():
            stage.down_convs, stage.up_convs = nn.ModuleDict(), nn.ModuleDict()
        self.merged.update(merged)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """(B, C, H, W) -> scores (B, classes, h, w) at the output stage's size, or upsampled to `size`."""
        with batch_norm_errors():
            features = self.decode(self.backbone(x))
        logits = self.fc_conv(features)
        return logits if size is None else upsample(logits, size)

    def decode(self, end_points: Sequence[Tensor | None]) -> Tensor:
        """The output stage's output, (B, width, h, w), from the encoder's end points."""
        return decode(end_points, self.used, self.product, self.finish, self.refine)

    def used(self, kind: int, j: int) -> bool:
        """Whether any stage that reaches the output reads feature j of a kind."""
        return bool(self._takers[kind, j])

    def product(self, kind: int, j: int, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(stage, contribution) of feature j, for all stages that read it."""
        if self.merged:
            products = self.merged[f"{kind}_{j}"](x)
        else:
            products = _together(self._convs(kind, j), x)
        takers = self._takers[kind, j]
        yield from zip(takers, products.split([self.stage_widths[i] for i in takers], 1), strict=True)

    def finish(self, i: int, total: Tensor) -> Tensor:
        """Batch norm of stage i on the sum of its inputs, before relu6."""
        return self.decoders[f"Decoders_{i}"].bn(total)

    def refine(self, i: int, output: Tensor) -> Tensor:
        """Operation and context block of stage i on its activated sum."""
        return self.decoders[f"Decoders_{i}"].refine(output)


def _together(convs: Sequence[nn.Conv2d], x: Tensor) -> Tensor:
    """One product for several 1x1 convolutions of the same feature."""
    if len(convs) == 1:
        return convs[0](x)
    return F.conv2d(x, torch.cat([conv.weight for conv in convs]))


def _reaching_output(mask: np.ndarray) -> list[int]:
    """Stages that the output depends on, deepest first."""
    live = {len(mask) - 1}
    for i in range(len(mask) - 1, -1, -1):
        if i in live:
            live.update(int(j) - 1 for j in np.flatnonzero(mask[i, :, UP]) if j)
    return sorted(live)


class FCN(nn.Module):
    """The baseline without a decoder: one 1x1 convolution classifies the deepest end point.

    Arguments as :class:`PrunedNetwork`'s, less mask, depth and widths.
    """

    mask = None
    widths = None

    def __init__(
        self,
        backbone_name: str | nn.Module = "mobilenet_v2",
        in_channels: int = 3,
        num_classes: int = 21,
        bn_momentum: float = 0.0003,
        **backbone_options,
    ):
        super().__init__()
        self.backbone = build_backbone(backbone_name, in_channels, bn_momentum, backbone_options)
        self.fc_conv = nn.Conv2d(self.backbone.channels[0], num_classes, 1)
        init_convolutions(self.fc_conv)

    def fold(self) -> None:
        """Fold the batch norms into the convolutions, in place and irreversibly."""
        self.eval()
        fold_pairs(self.backbone)

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """(B, C, H, W) -> scores (B, classes, h, w) at the deepest size, or upsampled to `size`."""
        with batch_norm_errors():
            logits = self.fc_conv(F.relu6(self.backbone(x)[0]))
        return logits if size is None else upsample(logits, size)
