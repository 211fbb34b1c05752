"""EDSR, in the layouts of its authors and of BasicSR."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.spaces.smsr.network import MeanShift
from sparsemask.spaces.sr_networks.network import SRNetwork, State, colours, conv, convolution, count, has_all

_BASICSR = (
    (r"^conv_first\.", "head.0."),
    (r"^body\.(\d+)\.conv1\.", r"body.\1.body.0."),
    (r"^body\.(\d+)\.conv2\.", r"body.\1.body.2."),
    (r"^upsample\.", "tail.0."),
    (r"^conv_last\.", "tail.1."),
)
_LARGE = 256  # channels of the paper's large network, whose residuals are scaled by 0.1
_FACTORS = {4: 2, 9: 3}  # outputs over inputs of an upsampling convolution, and the scale of the shuffle behind it


class EDSR(SRNetwork):
    """Residual blocks without batch norms.

    Args:
        scale: 1, 2, 3, 4 or 8.
        n_feats: channels (64 in the baseline, 256 in the large network).
        n_blocks: residual blocks (16 and 32).

    Residuals are scaled by 0.1 with 256 channels and more, as published.
    """

    architecture = "EDSR"
    source = "Lim et al., Enhanced Deep Residual Networks, 2017, arXiv 1707.02921"
    value_range = 255.0

    def __init__(self, scale: int = 2, n_feats: int = 64, n_blocks: int = 16):
        super().__init__()
        self.scale, self.n_blocks = scale, n_blocks
        self.config = {"scale": scale, "n_feats": n_feats, "n_blocks": n_blocks}
        residual = 0.1 if n_feats >= _LARGE else 1.0
        self.sub_mean, self.add_mean = MeanShift(-1), MeanShift(1)
        self.head = nn.Sequential(conv(3, n_feats))
        blocks = (ResidualBlock(n_feats, residual) for _ in range(n_blocks))
        self.body = nn.Sequential(*blocks, conv(n_feats, n_feats))
        steps = {1: [], 2: [2], 3: [3], 4: [2, 2], 8: [2, 2, 2]}.get(scale)
        if steps is None:
            raise UseError(f"EDSR magnifies by 1, 2, 3, 4 or 8, not by {scale}")
        shuffles = (layer for s in steps for layer in (conv(n_feats, n_feats * s**2), nn.PixelShuffle(s)))
        self.tail = nn.Sequential(nn.Sequential(*shuffles), conv(n_feats, 3))

    @classmethod
    def rename(cls, state: State) -> State:
        """BasicSR's names as the authors'; the mean colours, which it does not store, are added."""
        if not has_all(
            state, ["conv_first.weight", "body.0.conv1.weight", "conv_after_body.weight", "conv_last.weight"]
        ):
            return state
        last = count(state, r"body\.(\d+)\.")
        renamed = {}
        for key, value in state.items():
            for old, new in (*_BASICSR, (r"^conv_after_body\.", f"body.{last}.")):
                key = re.sub(old, new, key)
            renamed[key] = value
        means = {"sub_mean": MeanShift(-1), "add_mean": MeanShift(1)}
        return {
            **renamed,
            **{f"{n}.{key}": value for n, shift in means.items() for key, value in shift.state_dict().items()},
        }

    @classmethod
    def describe(cls, state: State) -> dict[str, Any] | None:
        """See :meth:`SRNetwork.describe`."""
        if not has_all(state, ["head.0.weight", "body.0.body.0.weight", "body.0.body.2.weight", "tail.1.weight"]):
            return None
        n_feats, inputs, _ = convolution(state, "head.0", 3)
        colours(inputs)
        for name in ("sub_mean.weight", "add_mean.weight"):
            if name in state and not torch.equal(state[name].flatten().cpu().float(), torch.eye(3).flatten()):
                raise UseError(f"{name} is no identity: colours with a standard deviation of their own are not known")
        ups = sorted({int(match[1]) for key in state if (match := re.match(r"tail\.0\.(\d+)\.weight$", key))})
        scale = 1
        for number in ups:
            outputs, inputs, _ = convolution(state, f"tail.0.{number}", 3)
            if outputs % inputs or outputs // inputs not in _FACTORS:
                raise UseError(f"tail.0.{number} makes {outputs} channels of {inputs}, expected 4 or 9 times as many")
            scale *= _FACTORS[outputs // inputs]
        return {"scale": scale, "n_feats": n_feats, "n_blocks": count(state, r"body\.(\d+)\.") - 1}

    @property
    def radius(self) -> int:
        """One pixel for each convolution, less for those behind a shuffle."""
        return 2 * self.n_blocks + 4 + (self.scale > 3)

    def compute(self, x: Tensor) -> Tensor:
        """See :meth:`SRNetwork.compute`."""
        first = self.head(self.sub_mean(x))
        return self.add_mean(self.tail(self.body(first) + first))


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions with a ReLU between, scaled; the input added."""

    def __init__(self, channels: int, residual: float):
        super().__init__()
        self.body = nn.Sequential(conv(channels, channels), nn.ReLU(), conv(channels, channels))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C, H, W) to features."""
        return torch.add(x, self.body(x), alpha=self.residual)
