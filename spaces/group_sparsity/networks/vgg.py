"""VGG-16 for images of 32×32 (Simonyan and Zisserman, ICLR 2015), with batch norms."""

from __future__ import annotations

from torch import Tensor, nn

from sparsemask.spaces.group_sparsity.networks.layers import conv3x3, he_init

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))


class VGG(nn.Module):
    """Images (N, 3, 32, 32) -> logits (N, n_class): thirteen convolutions, then three linear layers.

    The linear layers (512, 512, classes) have no activation between them, as published.
    """

    def __init__(self, n_class: int = 10) -> None:
        super().__init__()
        parts, channels = [], 3
        for width, count in _STAGES:
            for _ in range(count):
                parts.append(nn.Sequential(conv3x3(channels, width, bias=True), nn.BatchNorm2d(width), nn.ReLU()))
                channels = width
            parts.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*parts)
        self.classifier = nn.Sequential(nn.Linear(512, 512), nn.Linear(512, 512), nn.Linear(512, n_class))
        he_init(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))
