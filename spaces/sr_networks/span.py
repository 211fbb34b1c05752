"""SPAN, the winner of NTIRE 2024's challenge on efficient super-resolution."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.spaces.smsr.network import RGB_MEAN
from sparsemask.spaces.sr_networks.network import (
    SRNetwork,
    State,
    colours,
    conv,
    convolution,
    count,
    has_all,
    shuffle_scale,
)


class SPAN(SRNetwork):
    """Blocks whose attention is a symmetric function of their own output, without weights.

    Args:
        scale: 1 and more.
        n_feats: channels (48 in the released files, 52 in larger ones).
        n_blocks: blocks (6 in the released files), 2 at least.
        gain: factor on the channels inside the convolutions' training form.
        folded: only the plain 3×3 convolutions, without the branches that training has beside them.
        centred: subtract the mean colour and go to 0 to 255 first, as published; files with an entry `no_norm` do not.

    Files of the training form are folded when they are loaded (:meth:`fold`): what they hold in `eval_conv` may be
    older than the branches, and is not used.
    """

    architecture = "SPAN"
    source = "Wan et al., Swift Parameter-free Attention Network, 2023, arXiv 2311.12770"

    def __init__(
        self,
        scale: int = 4,
        n_feats: int = 48,
        n_blocks: int = 6,
        gain: int = 2,
        folded: bool = False,
        centred: bool = True,
    ):
        super().__init__()
        self.scale, self.n_blocks, self.centred = scale, n_blocks, centred
        self.config = {
            "scale": scale, "n_feats": n_feats, "n_blocks": n_blocks, "gain": gain, "folded": folded, "centred": centred
        }  # fmt: skip
        self.conv_1 = BranchedConv(3, n_feats, gain, folded)
        for number in range(1, n_blocks + 1):
            self.add_module(f"block_{number}", AttentionBlock(n_feats, gain, folded))
        self.conv_2 = BranchedConv(n_feats, n_feats, gain, folded)
        self.conv_cat = conv(4 * n_feats, n_feats, 1)
        self.upsampler = nn.Sequential(conv(n_feats, 3 * scale**2), nn.PixelShuffle(scale))
        if not centred:
            self.register_buffer("no_norm", torch.zeros(1))
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)

    @classmethod
    def describe(cls, state: State) -> dict[str, Any] | None:
        """See :meth:`SRNetwork.describe`."""
        if not has_all(state, ["conv_1.eval_conv.weight", "block_1.c1_r.eval_conv.weight", "conv_cat.weight"]):
            return None
        n_feats, inputs, _ = convolution(state, "conv_1.eval_conv", 3)
        colours(inputs)
        folded = "conv_1.sk.weight" not in state
        gain = 2 if folded else convolution(state, "block_1.c1_r.conv.0", 1)[0] // n_feats
        return {
            "scale": shuffle_scale(convolution(state, "upsampler.0", 3)[0]),
            "n_feats": n_feats,
            "n_blocks": count(state, r"block_(\d+)\.", 1),
            "gain": gain,
            "folded": folded,
            "centred": "no_norm" not in state,
        }

    @property
    def title(self) -> str:
        """Architecture, scale and size in a few words."""
        return f"{self.architecture} x{self.scale} (n_feats {self.config['n_feats']}, n_blocks {self.n_blocks})"

    @property
    def radius(self) -> int:
        """One pixel for each convolution."""
        return 3 * self.n_blocks + 3

    def compute(self, x: Tensor) -> Tensor:
        """See :meth:`SRNetwork.compute`."""
        features = first = self.conv_1((x - self.mean) * 255 if self.centred else x)
        second = inner = first
        for number in range(1, self.n_blocks + 1):
            features, inner = self.get_submodule(f"block_{number}")(features)
            second = features if number == 1 else second
        return self.upsampler(self.conv_cat(torch.cat([first, self.conv_2(features), second, inner], 1)))

    def fold(self) -> None:
        """Merge the branches of all convolutions into one 3×3 convolution each, in place."""
        for module in self.modules():
            if isinstance(module, BranchedConv):
                module.fold()
        self.config = {**self.config, "folded": True}


class AttentionBlock(nn.Module):
    """Three convolutions with SiLU between; their output times its own odd sigmoid, the input added (section 3.1)."""

    def __init__(self, channels: int, gain: int, folded: bool):
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (BranchedConv(channels, channels, gain, folded) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, C, H, W) to (features, output of the first convolution after its SiLU).

        The public code gives the latter before its SiLU, which works in place.
        """
        inner = F.silu(self.c1_r(x))
        y = self.c3_r(F.silu(self.c2_r(inner)))
        return (y + x) * (torch.sigmoid(y) - 0.5), inner


class BranchedConv(nn.Module):
    """A 3×3 convolution that is trained as 1×1, 3×3, 1×1 in a row beside a 1×1.

    The input is padded by zeros before the first 1×1 convolution, so that the branches equal one 3×3 convolution at
    the image's border too.

    Args:
        inputs: channels.
        outputs: channels.
        gain: factor on the channels inside.
        folded: only the 3×3 convolution `eval_conv`.
    """

    def __init__(self, inputs: int, outputs: int, gain: int = 2, folded: bool = False):
        super().__init__()
        self.folded = folded
        if not folded:
            wide = (inputs * gain, outputs * gain)
            self.sk = nn.Conv2d(inputs, outputs, 1)
            self.conv = nn.Sequential(
                nn.Conv2d(inputs, wide[0], 1), nn.Conv2d(wide[0], wide[1], 3), nn.Conv2d(wide[1], outputs, 1)
            )
        self.eval_conv = conv(inputs, outputs)
        self.eval_conv.requires_grad_(folded)

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C, H, W) to (N, C', H, W)."""
        if self.folded:
            return self.eval_conv(x)
        # Merged anew in every call, gradients included: a quarter of the work of the branches one by one.
        weight, bias = self.merged(x.dtype)
        return F.conv2d(x, weight, bias, padding=1)

    def merged(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """Kernel and bias of the 3×3 convolution that equals the branches, differentiable."""
        (w1, b1), (w2, b2), (w3, b3), (skip, b0) = (
            (layer.weight.to(dtype), layer.bias.to(dtype)) for layer in (*self.conv, self.sk)
        )
        weight = torch.einsum("pmyx,mi->piyx", w2, w1[:, :, 0, 0])
        bias = b2 + torch.einsum("pmyx,m->p", w2, b1)
        weight = torch.einsum("op,piyx->oiyx", w3[:, :, 0, 0], weight) + F.pad(skip, (1, 1, 1, 1))
        return weight, torch.mv(w3[:, :, 0, 0], bias) + b3 + b0

    @torch.no_grad()
    def fold(self) -> None:
        """Replace the branches by the 3×3 convolution that equals them, computed in float64."""
        if self.folded:
            return
        weight, bias = self.merged()
        self.eval_conv.weight.copy_(weight)
        self.eval_conv.bias.copy_(bias)
        del self.sk, self.conv
        self.folded = True
        self.eval_conv.requires_grad_(True)
