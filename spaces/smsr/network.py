"""SMSR: super-resolution that computes at kept locations and in dense channels (Wang et al., CVPR 2021, 2006.09603)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.exporting.bicubic import enlarge
from sparsemask.ops import dispatch
from sparsemask.ops.layout import to_channels_last
from sparsemask.ops.predict_mask import WIDEST
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork, MaskModule, Part, begin_smoothly
from sparsemask.sparse import DataMask, SparseMaskBlock, gumbel_mask, joined_conv, kept_fraction

SCALES = (2, 3, 4)
RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K, in [0, 1]
RGB_RANGE = 255.0


class SMSR(MaskedNetwork):
    """The network of the paper's section 3, under the public checkpoints' names.

    Args:
        scale: 2, 3 or 4.
        n_feats: channels of the features; the mask branches have a quarter of them.
        n_modules: sparse mask modules in sequence.
        n_layers: sparse mask convolutions in a module.
        reduction: of the channel attention's bottleneck.

    In evaluation the masks are hard and the convolutions run through the sparse operator; in training they are soft
    (see :func:`sparsemask.sparse.set_mask_mode`) and `tau` is the softmax's temperature.

    After a forward pass `kept` holds, module by module, the (L,) kept fractions of its layers (differentiable in
    training), `masks` the data masks (N, 1, H, W), and `hard_kept` the kept fractions of hard masks.

    Raises:
        UseError: an argument out of range.
    """

    def __init__(self, scale: int = 2, n_feats: int = 64, n_modules: int = 5, n_layers: int = 4, reduction: int = 16):
        super().__init__()
        if scale not in SCALES:
            raise UseError(f"SMSR magnifies by {', '.join(map(str, SCALES))}, not by {scale}")
        for name, value, least in (
            ("n_feats", n_feats, 4), ("n_modules", n_modules, 1), ("n_layers", n_layers, 1), ("reduction", reduction, 1)
        ):  # fmt: skip
            if value < least:
                raise UseError(f"SMSR's {name} must be at least {least}, got {value}")
        self.scale, self.n_feats, self.n_modules = scale, n_feats, n_modules
        self.n_layers, self.reduction = n_layers, reduction
        self.tau = 1.0
        self.kept: list[Tensor] = []
        self.hard_kept: list[Tensor] = []
        self.masks: list[Tensor] = []
        conv = lambda a, b, k: nn.Conv2d(a, b, k, padding=k // 2)
        self.sub_mean = MeanShift(-1)
        self.head = nn.Sequential(conv(3, n_feats, 3), nn.ReLU(), conv(n_feats, n_feats, 3))
        self.body = nn.ModuleList(SparseMaskModule(n_feats, n_layers, reduction) for _ in range(n_modules))
        self.collect = nn.Sequential(conv(n_modules * n_feats, n_feats, 1), nn.ReLU(), conv(n_feats, n_feats, 3))
        self.tail = nn.Sequential(conv(n_feats, 3 * scale**2, 3), nn.PixelShuffle(scale))
        self.add_mean = MeanShift(1)

    @property
    def config(self) -> dict[str, int]:
        """The arguments that build this network again."""
        return {
            "scale": self.scale,
            "n_feats": self.n_feats,
            "n_modules": self.n_modules,
            "n_layers": self.n_layers,
            "reduction": self.reduction,
        }

    def parts(self) -> dict[str, Part]:
        """Its modules: each is one operator."""
        return {f"body.{number}": Part(module, module.body) for number, module in enumerate(self.body)}

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) of 0 to 255 to (N, 3, s·H, s·W), any H and W; not clamped."""
        self.follow(x)
        out, self.kept, self.masks = self.compute(x)
        self.hard_kept = [k if m.hard_kept is None else m.hard_kept for m, k in zip(self.body, self.kept, strict=True)]
        return out

    def compute(self, x: Tensor) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Compute as :meth:`forward`, without setting attributes: (images, kept fractions, data masks)."""
        x, base, head = self.begin(x)
        features, outputs, kept, masks = head, [], [], []
        for module in self.body:
            features, module_kept, mask = module(features, self.tau)
            outputs.append(features)
            kept.append(module_kept)
            masks.append(mask)
        if torch.is_grad_enabled():
            total = self.collect[0](torch.cat(outputs, 1))
        else:  # a concatenation of all modules would be the largest tensor of the network
            total = joined_conv(outputs, self.collect[0].weight, self.collect[0].bias)
        del outputs, features
        return self.end(total, head, base), kept, masks

    def begin(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(mean-subtracted input, its bicubic upsampling, features of the head)."""
        x = to_channels_last(self.sub_mean(x))
        return x, self.skip(x), self.head(x)

    def skip(self, x: Tensor) -> Tensor:
        """The bicubic skip connection, corners not aligned, as published."""
        return enlarge(x, self.scale)

    def gather(self, number: int, features: Tensor, total: Tensor | None) -> Tensor:
        """Contribution of module `number`'s features to the 1×1 convolution over all modules, added to `total`."""
        conv = self.collect[0]
        weight = conv.weight[:, number * self.n_feats : (number + 1) * self.n_feats]
        part = F.conv2d(features, weight, conv.bias if number == 0 else None)
        return part if total is None else part.add_(total)

    def end(self, total: Tensor, head: Tensor, base: Tensor) -> Tensor:
        """From the gathered features to the image; without gradients `total` is overwritten."""
        conv = self.collect[2]
        squares = not torch.is_grad_enabled() and dispatch.beats_dense(conv.weight, total, in_nodes=True)
        if torch.is_grad_enabled() or torch.compiler.is_exporting():
            gathered = self.collect[1](total)
            features = joined_conv([gathered], conv.weight, conv.bias, head) if squares else conv(gathered) + head
            # Programs of other runtimes have a pixel shuffle of their own.
            own = torch.is_grad_enabled() or not dispatch.in_program()
            larger = self.tail(features) if own else _shuffled(self.tail[0](features), self.scale)
            return self.add_mean(larger + base)
        if squares:
            features = joined_conv([F.relu_(total)], conv.weight, conv.bias, head)
        else:
            features = conv(F.relu_(total)).add_(head)
        return (_shuffled(self.tail[0](features), self.scale) + base).add_(self.add_mean.bias.view(1, 3, 1, 1))


def _shuffled(x: Tensor, scale: int) -> Tensor:
    """As torch's pixel shuffle, which takes four times as long on channels-last features."""
    batch, channels, height, width = x.shape
    parts = x.view(batch, channels // scale**2, scale, scale, height, width).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(batch, channels // scale**2, height * scale, width * scale)


class SparseMaskModule(MaskModule):
    """A data mask, a block of sparse mask convolutions under it, channel attention, and the module's input added."""

    def __init__(self, channels: int, layers: int = 4, reduction: int = 16):
        super().__init__()
        self.spa_mask = DataMask(channels)
        begin_smoothly(self.spa_mask[-1])
        self.body = SparseMaskBlock(channels, layers)
        self.ca = ChannelAttention(channels, reduction)
        self.hard_kept: Tensor | None = None

    def channel_parameters(self) -> list[nn.Parameter]:
        """Of all layers, (1, C, L, 2)."""
        return [self.body.ch_mask]

    def branch(self) -> DataMask:
        """The mask branch."""
        return self.spa_mask

    def branch_end(self) -> tuple[Tensor, Tensor | None]:
        """The transposed convolution."""
        return self.spa_mask[-1].weight, self.spa_mask[-1].bias

    def forward(self, x: Tensor, tau: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Features (N, C, H, W) -> (features, kept fractions (L,), data mask (N, 1, H, W))."""
        constant = self.constant_mask()
        mask = self._locate(x, tau, constant)
        if constant:
            y = self.everything(x)
            kept = x.new_ones(len(self.body.body))
            return self.attend(x, y, y.mean((2, 3), keepdim=True)), kept, mask
        if self.body.skips(x, mask):
            squeeze, _, excite, _ = self.ca.conv_du
            attention = (squeeze.weight, squeeze.bias, excite.weight, excite.bias)
            return *self.body.attended(x, mask, attention), mask
        y, kept = self.body(x, mask, tau)
        return self.attend(x, y, y.mean((2, 3), keepdim=True)), kept, mask

    def everything(self, x: Tensor) -> Tensor:
        """Everything up to the channel attention without masks: plain convolutions."""
        outputs, activate = [], F.relu if torch.is_grad_enabled() else F.relu_
        for layer in self.body.body:
            x = activate(F.conv2d(x, layer.weight, padding=layer.weight.shape[-1] // 2))
            outputs.append(x)
        return self.body.collect(torch.cat(outputs, 1))

    def fuse(self, x: Tensor, tau: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
        """Everything up to the channel attention, the only layer that depends on the whole image."""
        mask = self.locate(x, tau)
        y, kept = self.body(x, mask, tau)
        return y, kept, mask

    def locate(self, x: Tensor, tau: float = 1.0) -> Tensor:
        """The data mask (N, 1, H, W); if it is soft, `hard_kept` is set to the kept fractions of a hard one."""
        return self._locate(x, tau, self.constant_mask())

    def _locate(self, x: Tensor, tau: float, constant: bool | None) -> Tensor:
        self.hard_kept = None
        if constant is not None:
            return x.new_full((len(x), 1, *x.shape[2:]), constant, dtype=torch.bool)
        if not self.training or self.spa_mask.mask_mode != "soft":
            plain = torch.is_grad_enabled() or x.dtype != torch.float32 or len(self.spa_mask[0].weight) > WIDEST
            return self.spa_mask(x, tau) if plain else self._hard_mask(x)
        logits = self.spa_mask.logits(x)
        drop, keep = logits.detach().split(1, 1)
        self.hard_kept = kept_fraction(torch.sigmoid(keep - drop) > self.spa_mask.threshold, self.body.ch_mask.detach())
        return gumbel_mask(logits, tau)[:, 1:]

    def _hard_mask(self, x: Tensor) -> Tensor:
        """What the mask branch gives, as one operator."""
        branch = self.spa_mask
        return torch.ops.sparsemask.locate(
            x, *(tensor for number in (0, 3, 5) for tensor in (branch[number].weight, branch[number].bias)),
            branch.threshold, False, dispatch.current(self.body.backend, self.body.planned, x),
        )  # fmt: skip

    def attend(self, x: Tensor, y: Tensor, mean: Tensor) -> Tensor:
        """x + a·y, attention a from the mean (N, C, 1, 1) of y over the image; without gradients y is overwritten."""
        a = self.ca(mean)
        return torch.addcmul(x, y, a) if torch.is_grad_enabled() else y.mul_(a).add_(x)


class ChannelAttention(nn.Module):
    """A weight in (0, 1) for every channel from the channels' means (RCAN, arXiv 1807.02758)."""

    def __init__(self, channels: int, reduction: int = 16):
        super().__init__()
        narrow = max(1, channels // reduction)
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, narrow, 1), nn.ReLU(), nn.Conv2d(narrow, channels, 1), nn.Sigmoid()
        )

    def forward(self, mean: Tensor) -> Tensor:
        """Means (N, C, 1, 1) -> weights (N, C, 1, 1)."""
        return self.conv_du(mean)


class MeanShift(nn.Module):
    """Adds or subtracts the mean colour; not learned. Its two tensors are part of the public checkpoints."""

    def __init__(self, sign: int):
        super().__init__()
        self.register_buffer("weight", torch.eye(3).view(3, 3, 1, 1))
        self.register_buffer("bias", sign * RGB_RANGE * torch.tensor(RGB_MEAN))

    def forward(self, x: Tensor) -> Tensor:
        """Images (N, 3, H, W) to images."""
        return x + self.bias.view(1, 3, 1, 1)
