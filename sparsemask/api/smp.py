"""Networks of searched connectivity in the form of segmentation_models_pytorch: encoder, decoder, head."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.masks.decoder import deepest_end_point
from sparsemask.spaces.connectivity import PrunedNetwork
from sparsemask.spaces.connectivity.pruned_network import Structure
from sparsemask.spaces.connectivity.search_network import batch_norm_errors, upsample


class Encoder(nn.Module):
    """The picture and the encoder's end points, shallowest first.

    Attributes:
        out_channels: channels of each, the picture's first.
        strides: of each; the picture's is 1.
    """

    def __init__(self, backbone: nn.Module, channels: Sequence[int], strides: Sequence[int], deepest: int):
        super().__init__()
        self.backbone, self._deepest = backbone, deepest
        in_channels = next(layer for layer in backbone.modules() if isinstance(layer, nn.Conv2d)).in_channels
        self.out_channels = (in_channels, *reversed(channels[deepest:]))
        self.strides = (1, *reversed(strides[deepest:]))

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> the same and the end points (B, c, ceil(H / stride), ceil(W / stride)), before activation."""
        with batch_norm_errors():
            return [x, *reversed(self.backbone(x)[self._deepest :])]


class Decoder(nn.Module):
    """The stages of a connectivity network.

    Attributes:
        out_channels: channels of the output stage.
    """

    def __init__(self, network: PrunedNetwork, deepest: int):
        super().__init__()
        self.stages, self.merged = network.decoders, network.merged
        self.out_channels = network.fc_conv.in_channels
        # Not registered: the encoder's parameters are none of the decoder's.
        self._network, self._unread = (network,), [None] * deepest

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """What the encoder gives -> the output stage's output, (B, out_channels, h, w)."""
        with batch_norm_errors():
            return self._network[0].decode([*self._unread, *reversed(features[1:])])


class SegmentationHead(nn.Module):
    """A 1x1 convolution, and bilinear enlargement by the output stage's stride, corners aligned."""

    def __init__(self, convolution: nn.Conv2d, stride: int):
        super().__init__()
        self.convolution, self._stride = convolution, stride

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """(B, c, h, w) -> scores (B, classes, *size); without a size h and w times the stride."""
        return upsample(self.convolution(x), size or [self._stride * side for side in x.shape[-2:]])


class SegmentationModel(nn.Module):
    """A connectivity network for code that is written for models of segmentation_models_pytorch.

    Parameters and statistics are the network's own, not copies. Pictures may have any size.

    Args:
        network: of `load_network`, or of a retraining's :meth:`~sparsemask.api.RunResult.network`.

    Attributes:
        encoder: gives the list [picture, shallowest end point, ..., deepest one in use]; has `out_channels`.
        decoder: makes one map of that list.
        segmentation_head: makes scores of that map.

    Raises:
        UseError: a network of another kind.

    Example::

        model = sparsemask.SegmentationModel(load_network("runs/NAME/network.safetensors"))
        groups = [{"params": model.encoder.parameters(), "lr": 1e-4}, {"params": model.decoder.parameters()}]
    """

    def __init__(self, network: nn.Module):
        super().__init__()
        if not isinstance(network, PrunedNetwork):
            raise UseError(f"{type(network).__name__}: a network of searched connectivity is wanted (PrunedNetwork)")
        backbone, structure = network.backbone, Structure.of(network.mask, network.fc_conv.in_channels)
        deepest = deepest_end_point(structure.connections[structure.live])
        self.encoder = Encoder(backbone, backbone.channels, backbone.strides, deepest)
        self.decoder = Decoder(network, deepest)
        self.segmentation_head = SegmentationHead(network.fc_conv, backbone.strides[structure.output])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> scores (B, classes, H, W), before any softmax."""
        return self.segmentation_head(self.decoder(self.encoder(x)), x.shape[-2:])

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Scores in evaluation mode and without gradients, as of :meth:`forward`."""
        return self.eval()(x)
