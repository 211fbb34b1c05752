"""The same weights without masks: what the sparse network is timed against, and its multiply-adds in closed form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spaces.sparse_conv.smsr import SMSR, SparseMaskModule


class DenseForm(nn.Module):
    """An SMSR with everything kept, as plain convolutions: no mask branches, no masks.

    It shares the weights of `network`. Its output is that of the network whose data masks keep every location.
    """

    def __init__(self, network: SMSR):
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) of 0 to 255 to (N, 3, s·H, s·W)."""
        net = self.network
        _, base, head = net.begin(x)
        features, total = head, None
        for number, module in enumerate(net.body):
            y = self._fuse(module, features)
            features = module.attend(features, y, y.mean((2, 3), keepdim=True))
            total = net.gather(number, features, total)
        return net.end(total, head, base)

    @staticmethod
    def _fuse(module: SparseMaskModule, x: Tensor) -> Tensor:
        outputs = []
        for layer in module.body.body:
            x = F.relu(F.conv2d(x, layer.weight, padding=layer.weight.shape[-1] // 2))
            outputs.append(x)
        return module.body.collect(torch.cat(outputs, 1))


def multiply_adds(network: SMSR, height: int, width: int, published: bool = False) -> int:
    """Multiply-adds of the network on one picture of height × width when every location and channel is kept.

    The mask branches are counted in, biases and products with masks are not. `published` counts as the papers do: the
    mask branches' transposed convolutions at the size of their output and the two shifts of the mean as convolutions
    (224.1 G for ×2 to 1280×720; executed are 223.80 G).
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
