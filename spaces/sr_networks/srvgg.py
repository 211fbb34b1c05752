"""SRVGGNetCompact, the compact networks of Real-ESRGAN."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.spaces.sr_networks.network import (
    SRNetwork,
    State,
    colours,
    conv,
    convolution,
    count,
    interpolate_nearest,
    shuffle_scale,
)


class SRVGGNetCompact(SRNetwork):
    """A chain of 3×3 convolutions with PReLU, a pixel shuffle, and the nearest neighbour's image added.

    Args:
        scale: 1 and more.
        n_feats: channels (64 in the released files).
        n_blocks: convolutions between the first and the last (16 and 32 in the released files).
    """

    architecture = "SRVGGNetCompact"
    source = "Wang et al., Real-ESRGAN, 2021, arXiv 2107.10833 (the compact networks of its release 0.2.5)"

    def __init__(self, scale: int = 4, n_feats: int = 64, n_blocks: int = 16):
        super().__init__()
        self.scale, self.n_blocks = scale, n_blocks
        self.config = {"scale": scale, "n_feats": n_feats, "n_blocks": n_blocks}
        layers: list[nn.Module] = []
        for number in range(n_blocks + 1):
            layers += [conv(n_feats if number else 3, n_feats), nn.PReLU(n_feats)]
        self.body = nn.Sequential(*layers, conv(n_feats, 3 * scale**2))
        self.upsampler = nn.PixelShuffle(scale)

    @classmethod
    def describe(cls, state: State) -> dict[str, Any] | None:
        """See :meth:`SRNetwork.describe`."""
        first = state.get("body.0.weight")
        if first is None or first.ndim != 4 or any(key.count(".") != 2 for key in state):
            return None
        n_feats, inputs, _ = convolution(state, "body.0", 3)
        colours(inputs)
        if "body.1.weight" not in state:
            raise UseError("it has activations without weights, ReLU or LeakyReLU, of which its names do not tell")
        length = count(state, r"body\.(\d+)\.")
        if length < 3 or length % 2 == 0:
            raise UseError(f"its body has {length} layers, expected convolutions and PReLU in turn")
        scale = shuffle_scale(convolution(state, f"body.{length - 1}", 3)[0])
        return {"scale": scale, "n_feats": n_feats, "n_blocks": (length - 3) // 2}

    @property
    def radius(self) -> int:
        """One pixel for each convolution."""
        return self.n_blocks + 2

    def compute(self, x: Tensor) -> Tensor:
        """See :meth:`SRNetwork.compute`."""
        return self.upsampler(self.body(x)) + interpolate_nearest(x, self.scale)
