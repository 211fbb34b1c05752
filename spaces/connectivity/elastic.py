"""One network with the weights of every decoder of the wider space, for searches that try decoders without training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.masks import DOWN, UP
from sparsemask.masks.decoder import FULL, MULTIPLE, SEPARABLE, DecoderMask, check_decoder, deepest_end_point
from sparsemask.spaces.backbones.mobilenet_v2 import MobileNetV2
from sparsemask.spaces.connectivity.operations import ContextBlock, FullConvolution, Layers, SeparableConvolution
from sparsemask.spaces.connectivity.pruned_network import Structure
from sparsemask.spaces.connectivity.search_network import (
    batch_norm_errors,
    build_backbone,
    decode,
    init_convolutions,
    upsample,
)


class ElasticConv(nn.Conv2d):
    """A convolution that keeps the number of channels, of any number up to its own: that of its input.

    Its input may also be several features of one width behind each other, as many as `in_channels / out_channels`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C / blocks, H, W)."""
        if x.shape[1] == self.in_channels:
            return super().forward(x)
        width = x.shape[1] * self.out_channels // self.in_channels
        groups = 1 if self.groups == 1 else width
        return F.conv2d(x, self.narrowed(width), None, self.stride, self.padding, self.dilation, groups)

    def narrowed(self, width: int) -> Tensor:
        """The weight for a width: the first channels of every block."""
        if self.groups > 1:
            return self.weight[:width]
        blocks = self.in_channels // self.out_channels
        weight = self.weight.unflatten(1, (blocks, self.out_channels))[:width, :, :width]
        return weight.flatten(1, 2)


class ElasticNorm(nn.BatchNorm2d):
    """A batch norm of any number of channels up to its own; of fewer the first, in its running statistics too."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        width = x.shape[1]
        if width == self.num_features:
            return super().forward(x)
        momentum = self.momentum
        if self.training:
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if momentum is None else momentum
        mean, variance, weight, bias = (
            tensor[:width] for tensor in (self.running_mean, self.running_var, self.weight, self.bias)
        )
        return F.batch_norm(x, mean, variance, weight, bias, self.training, momentum or 0.0, self.eps)


class ElasticStage(nn.Module):
    """Parameters of a stage with every input, every operation, and a context block, at full width."""

    def __init__(self, down: Sequence[int], up: Sequence[int], depth: int, momentum: float):
        super().__init__()
        self.down_convs = nn.ModuleDict({str(j): nn.Conv2d(c, depth, 1, bias=False) for j, c in enumerate(down)})
        self.up_convs = nn.ModuleDict({str(j): nn.Conv2d(c, depth, 1, bias=False) for j, c in enumerate(up)})
        self.bn = ElasticNorm(depth, momentum=momentum)
        layers = Layers(ElasticConv, ElasticNorm)
        self.separable = SeparableConvolution(depth, momentum, layers)
        self.full = FullConvolution(depth, momentum, layers)
        self.context = ContextBlock(depth, momentum, layers)

    def operation(self, number: int) -> nn.Module | None:
        """The layers of an operation, None for the published one."""
        return {SEPARABLE: self.separable, FULL: self.full}.get(number)


class ElasticNetwork(nn.Module):
    """The weights of every decoder of the wider space in one network; a call computes one decoder alone.

    A stage of a decoder takes what it needs from its full form here: of its inputs those that it has, of its 3x3
    convolutions the one of its operation, the context block if it has one, and of all channels the first. Running
    statistics are shared by all decoders too, so that in evaluation they are right for a decoder only after
    :func:`sparsemask.engine.method.reestimate` of its :meth:`restricted` form.

    Args:
        backbone: name of a registered backbone, or a backbone already built.
        depth: channels of the stages at most, and of all stages of published masks.
        widths: channels that stages may have, multiples of 8 up to `depth`.
        n_class: channels of the output.
        in_channels: channels of the input image.
        bn_momentum: of all running statistics.
        backbone_options: further arguments of the backbone's builder, such as its form.

    Raises:
        UseError: an unknown backbone, or widths that are not allowed.
    """

    def __init__(
        self,
        backbone: str | nn.Module = "mobilenet_v2",
        depth: int = 64,
        widths: Sequence[int] = (16, 32, 48, 64),
        n_class: int = 21,
        in_channels: int = 3,
        bn_momentum: float = 0.0003,
        **backbone_options,
    ):
        super().__init__()
        if not widths or any(width % MULTIPLE or not MULTIPLE <= width <= depth for width in widths):
            raise UseError(f"widths {list(widths)}: of stages are multiples of {MULTIPLE} up to the depth {depth}")
        self.depth, self.widths = depth, tuple(sorted(widths))
        self.backbone = build_backbone(backbone, in_channels, bn_momentum, backbone_options)
        down = list(self.backbone.channels)
        up = [down[0]] + [depth] * (len(down) - 1)
        self.decoders = nn.ModuleDict(
            {f"Decoders_{i}": ElasticStage(down[: i + 1], up[: i + 1], depth, bn_momentum) for i in range(len(down))}
        )
        self.fc_conv = nn.Conv2d(depth, n_class, 1)
        init_convolutions(self.decoders, self.fc_conv)

    def forward(self, x: Tensor, mask: np.ndarray | DecoderMask, size: Sequence[int] | None = None) -> Tensor:
        """Compute one decoder, and the encoder as deep as it needs it where the backbone can.

        Args:
            x: images (B, C, H, W).
            mask: bool (L, L, 2) or a decoder of the wider space.
            size: of the scores; None: the output stage's.

        Returns:
            Scores (B, n_class, h, w).

        Raises:
            UseError: a mask of another number of features, or a width that this network is not made for.
        """
        structure = self._structure(mask)
        takers, widths = structure.takers, structure.widths

        def product(kind: int, j: int, feature: Tensor) -> Iterator[tuple[int, Tensor]]:
            stages = takers[kind, j]
            weight = torch.cat([self._weight(i, kind, j)[: widths[i], : feature.shape[1]] for i in stages])
            yield from zip(stages, F.conv2d(feature, weight).split([widths[i] for i in stages], 1), strict=True)

        def refine(i: int, output: Tensor) -> Tensor:
            stage = self._stage(i)
            operation = stage.operation(structure.operations[i])
            output = output if operation is None else operation(output)
            return stage.context(output) if i == structure.context else output

        with batch_norm_errors():
            features = decode(
                self._end_points(x, structure),
                lambda kind, j: bool(takers[kind, j]),
                product,
                lambda i, total: self._stage(i).bn(total),
                refine,
            )
        logits = F.conv2d(features, self.fc_conv.weight[:, : features.shape[1]], self.fc_conv.bias)
        return logits if size is None else upsample(logits, size)

    def restricted(self, mask: np.ndarray | DecoderMask) -> nn.Module:
        """A module of images (and a size) that computes one decoder with the weights of this network, which it shares.

        Args:
            mask: as :meth:`forward`'s.

        Raises:
            UseError: as :meth:`forward`.
        """
        self._structure(mask)
        return _Restricted(self, mask)

    def state_for(self, mask: np.ndarray | DecoderMask) -> dict[str, Tensor]:
        """Copy the weights of one decoder's network.

        Args:
            mask: as :meth:`forward`'s.

        Returns:
            A state dict for ``PrunedNetwork(mask, ...)`` of the same backbone and depth; the whole encoder's weights
            are in it.

        Raises:
            UseError: as :meth:`forward`.
        """
        structure = self._structure(mask)
        state = {f"backbone.{key}": value for key, value in self.backbone.state_dict().items()}
        for i in np.flatnonzero(structure.connections.any((1, 2))).tolist():
            stage, width, prefix = self._stage(i), structure.widths[i], f"decoders.Decoders_{i}"
            for kind, name in ((DOWN, "down_convs"), (UP, "up_convs")):
                for j in np.flatnonzero(structure.connections[i, :, kind]).tolist():
                    weight = self._weight(i, kind, j)
                    inputs = structure.widths[j - 1] if kind == UP and j else weight.shape[1]
                    state[f"{prefix}.{name}.{j}.weight"] = weight[:width, :inputs]
            parts = {"bn": stage.bn, "operation": stage.operation(structure.operations[i])}
            if i == structure.context:
                parts["context"] = stage.context
            for name, part in parts.items():
                if part is not None:
                    state |= {f"{prefix}.{name}{key}": value for key, value in _narrowed(part, width)}
        width = structure.widths[structure.output]
        state |= {"fc_conv.weight": self.fc_conv.weight[:, :width], "fc_conv.bias": self.fc_conv.bias}
        return {key: value.detach().clone(memory_format=torch.contiguous_format) for key, value in state.items()}

    def _structure(self, mask: np.ndarray | DecoderMask) -> Structure:
        """The mask, checked, by stages."""
        structure = Structure.of(check_decoder(mask, len(self.backbone.channels)), self.depth)
        wrong = [i for i in structure.live if structure.widths[i] not in (*self.widths, self.depth)]
        if wrong:
            raise UseError(
                f"stage {wrong[0]} has {structure.widths[wrong[0]]} channels; this network is made for stages of "
                f"{', '.join(map(str, self.widths))}"
            )
        return structure

    def _end_points(self, x: Tensor, structure: Structure) -> Sequence[Tensor | None]:
        """The encoder's end points; a backbone of which parts can be computed stops at the deepest that is read."""
        if not isinstance(self.backbone, MobileNetV2):
            return self.backbone(x)
        return self.backbone(x, deepest_end_point(structure.connections[structure.live]))

    def _stage(self, i: int) -> ElasticStage:
        return self.decoders[f"Decoders_{i}"]

    def _weight(self, i: int, kind: int, j: int) -> Tensor:
        """The weight of a connection at full width."""
        stage = self._stage(i)
        return (stage.up_convs if kind == UP else stage.down_convs)[str(j)].weight


class _Restricted(nn.Module):
    """One decoder of an elastic network."""

    def __init__(self, network: ElasticNetwork, mask: np.ndarray | DecoderMask):
        super().__init__()
        self.network, self.mask = network, mask

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """(B, C, H, W) -> scores (B, classes, h, w) at the output stage's size, or upsampled to `size`."""
        return self.network(x, self.mask, size)


def _narrowed(part: nn.Module, width: int) -> Iterator[tuple[str, Tensor]]:
    """Names, each with a dot before it, and first channels of a part's tensors."""
    for name, module in part.named_modules():
        prefix = f".{name}" if name else ""
        if isinstance(module, ElasticConv):
            yield f"{prefix}.weight", module.narrowed(width)
        elif isinstance(module, ElasticNorm):
            for key, tensor in module.state_dict().items():
                yield f"{prefix}.{key}", tensor[:width] if tensor.dim() else tensor
