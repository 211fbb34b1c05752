"""Layers that several of the networks share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.errors import UseError


class ResidualBlock(nn.Module):
    """A branch of convolutions that is added to a shortcut; group sparsity may remove the branch.

    Attributes:
        end: name of the branch's last layer, a batch norm or a convolution: where its weight and bias are zero, the
            branch is zero.
    """

    end: str

    @abstractmethod
    def without_branch(self) -> nn.Module:
        """What computes the block where its branch is zero; the modules that are left keep their names."""


class PadChannels(nn.Module):
    """(N, C, H, W) -> (N, before + C + after, H, W), the new channels zero.

    The numbers are updated when channels of the tensor that the result is added to are removed (`remove_channels`).
    """

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.before = before
        self.after = after

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))

    def remove_channels(self, keep_in: np.ndarray, keep_out: np.ndarray) -> None:
        """Keep these channels of the input (bool, C) and of the output (bool, before + C + after)."""
        end = self.before + len(keep_in)
        self.before, self.after = int(keep_out[: self.before].sum()), int(keep_out[end:].sum())

    def extra_repr(self) -> str:
        return f"before={self.before}, after={self.after}"


def conv3x3(n_in: int, n_out: int, stride: int = 1, bias: bool = False) -> nn.Conv2d:
    """A 3×3 convolution with padding 1."""
    return nn.Conv2d(n_in, n_out, 3, stride, 1, bias=bias)


def blocks_of(depth: int, fixed: int, per_block: int, name: str) -> int:
    """Number of blocks in each of three stages for a network of `depth` layers.

    Args:
        depth: fixed + per_block · blocks.
        fixed: layers outside of the stages.
        per_block: layers of one block in all three stages.
        name: of the architecture, for errors.

    Raises:
        UseError: no such depth.
    """
    count, remainder = divmod(depth - fixed, per_block)
    if remainder or count < 1:
        raise UseError(f"{name}: depth {depth} does not exist; it must be {fixed} plus a multiple of {per_block}")
    return count


def shortcut_conv(n_in: int, n_out: int, stride: int) -> nn.Sequential:
    """A strided 1×1 convolution with batch norm, as a block's shortcut."""
    return nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))


def stages(
    block: Callable[[int, int, int], nn.Module], channels: int, widths: Sequence[int], count: int, expansion: int = 1
) -> list[nn.Sequential]:
    """Stages of `count` blocks; the first block of every stage but the first has a stride of 2.

    Args:
        block: (input channels, width, stride) -> a block.
        channels: of the first stage's input.
        widths: of the stages.
        count: blocks a stage.
        expansion: output channels of a block over its width.
    """
    result = []
    for number, width in enumerate(widths):
        blocks = []
        for index in range(count):
            blocks.append(block(channels, width, 2 if index == 0 and number > 0 else 1))
            channels = width * expansion
        result.append(nn.Sequential(*blocks))
    return result


def he_init(network: nn.Module) -> None:
    """Normal weights of variance 2 / fan-out in every convolution (He et al., ICCV 2015); biases zero."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
