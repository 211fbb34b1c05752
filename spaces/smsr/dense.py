"""SMSR as plain dense layers: without masks (the baseline for timing), or with masks that multiply."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sparsemask.spaces.smsr.network import SMSR, SparseMaskModule
from sparsemask.sparse import harden_channels


class DenseForm(nn.Module):
    """An SMSR with everything kept, as plain convolutions: no mask branches, no masks.

    It shares the weights of `network` and computes its output with every location and channel kept.

    Args:
        network: the SMSR.
    """

    def __init__(self, network: SMSR):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) of 0 to 255 to (N, 3, s·H, s·W)."""
        net = self.network
        _, base, head = net.begin(x)
        features, total = head, None
        for number, module in enumerate(net.body):
            y = module.everything(features)
            features = module.attend(features, y, y.mean((2, 3), keepdim=True))
            total = net.gather(number, features, total)
        return net.end(total, head, base)


class MaskedForm(nn.Module):
    """An SMSR whose hard masks multiply and skip nothing, made of standard operators.

    It shares the weights of `network` and gives the same output, at more than the dense cost: for export, and to
    inspect features, since every layer is called as a module.

    Args:
        network: the SMSR.
        open: keep every location and channel.
    """

    def __init__(self, network: SMSR, open: bool = False):
        super().__init__()
        self.network, self.open = network, open

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) of 0 to 255 to (N, 3, s·H, s·W)."""
        net = self.network
        _, base, head = net.begin(x)
        features, outputs = head, []
        for module in net.body:
            mask = None if self.open else self._mask(module, features)
            y = self._fuse(module, features, mask)
            features = features + module.ca(y.mean((2, 3), keepdim=True)) * y
            outputs.append(features)
        return net.add_mean(net.tail(net.collect(torch.cat(outputs, 1)) + head) + base)

    @staticmethod
    def _mask(module: SparseMaskModule, x: Tensor) -> Tensor:
        drop, keep = module.spa_mask.logits(x).split(1, 1)
        kept = (
            keep > drop if module.spa_mask.threshold == 0.5 else torch.sigmoid(keep - drop) > module.spa_mask.threshold
        )
        return kept.to(x.dtype)

    @staticmethod
    def _fuse(module: SparseMaskModule, x: Tensor, mask: Tensor | None) -> Tensor:
        dense = harden_channels(module.body.ch_mask.detach()).to(x.dtype)
        before, outputs = None, []
        for layer, channels in zip(module.body.body, dense.unbind(), strict=True):
            if mask is None:
                x = layer(x, torch.ones_like(x[:, :1]), None, None)
            else:
                x, before = layer(x, mask, before, channels), channels
            outputs.append(x)
        return module.body.collect(torch.cat(outputs, 1))


class OpenForm(MaskedForm):
    """As :class:`DenseForm`, of standard operators alone: for export.

    Args:
        network: the SMSR.
    """

    def __init__(self, network: SMSR):
        super().__init__(network, open=True)

    @staticmethod
    def _fuse(module: SparseMaskModule, x: Tensor, mask: Tensor | None) -> Tensor:
        return module.everything(x)


def multiply_adds(network: SMSR, height: int, width: int, published: bool = False) -> int:
    """Count multiply-adds on one image when every location and channel is kept.

    Mask branches are included, biases and products with masks are not.

    Args:
        network: the SMSR.
        height: of the input, pixels.
        width: of the input, pixels.
        published: count as the papers do: the mask branches' transposed convolutions at the size of their output and
            the two shifts of the mean as convolutions (224.1 G for ×2 to 1280×720; executed are 223.80 G).
    """
    pixels = height * width
    half = -(-height // 2) * -(-width // 2)
    plain = [network.head[0], network.head[2], *(network.collect[k] for k in (0, 2)), network.tail[0]]
    count = sum(conv.weight.numel() for conv in plain) * pixels
    for module in network.body:
        first, second, up = (module.spa_mask[k].weight.numel() for k in (0, 3, 5))
        count += first * 4 * half + second * half + up * (4 * half if published else half)
        count += (sum(layer.weight.numel() for layer in module.body.body) + module.body.collect.weight.numel()) * pixels
        count += sum(module.ca.conv_du[k].weight.numel() for k in (0, 2))
    return count + (9 * pixels * (1 + network.scale**2) if published else 0)
