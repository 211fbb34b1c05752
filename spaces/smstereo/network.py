"""SMStereo: disparity by 3-D convolutions that compute at kept voxels and in dense channels.

Wang et al., "Sparse Mask CNNs", TPAMI 2022, section on stereo matching; its dense form is GwcNet (Guo et al., CVPR
2019, arXiv 1903.04025), whose public weights load under their own names.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.ops.cost_volume import concatenation_volume, correlation_volume
from sparsemask.ops.layout import to_channels_last
from sparsemask.spaces.smstereo.layers import ConvNorm, Encoder, Residual, activate
from sparsemask.spaces.smstereo.mask_module import SparseHourglass
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork, Part

SIZE = 16  # heights and widths are multiples of it
_WIDTH = 32
_ADDED = 0.1  # initial batch norm scale of residual branches


class SMStereo(MaskedNetwork):
    """The stereo network.

    Args:
        maxdisp: disparities of 0 to maxdisp − 1 pixels; a multiple of 16.
        groups: of the correlation's 320 channels; a divisor of 320.
        concat: channels of an additional concatenation volume, 12 in GwcNet-gc; 0: none.

    In evaluation the masks are hard and dropped voxels are skipped; in training they are soft, `tau` is the softmax's
    temperature and `noise` says whether Gumbel noise is added. After a forward pass `kept` holds, layer by layer of the
    three hourglasses, the (1,) kept fractions, `hard_kept` those of hard masks, and `masks` the voxel masks, bool
    (B, 1, D, H, W), each at its layer's size.

    Raises:
        UseError: an argument out of range.
    """

    def __init__(self, maxdisp: int = 192, groups: int = 40, concat: int = 0):
        super().__init__()
        if maxdisp < 16 or maxdisp % 16:
            raise UseError(
                f"SMStereo's maxdisp must be a multiple of 16, got {maxdisp}: try {-(-max(maxdisp, 1) // 16) * 16}"
            )
        if groups < 1 or 320 % groups or concat < 0:
            raise UseError(
                f"SMStereo's groups must divide 320 channels, got {groups}, and concat be 0 or more: {concat}"
            )
        self.maxdisp, self.groups, self.concat = maxdisp, groups, concat
        self.tau, self.noise = 1.0, True
        self.kept: list[Tensor] = []
        self.hard_kept: list[Tensor] = []
        self.masks: list[Tensor] = []
        c = _WIDTH
        self.feature_extraction = Encoder(concat)
        self.dres0 = nn.Sequential(ConvNorm(groups + 2 * concat, c), nn.ReLU(), ConvNorm(c, c), nn.ReLU())
        self.dres1 = nn.Sequential(ConvNorm(c, c), nn.ReLU(), ConvNorm(c, c))
        self.dres2, self.dres3, self.dres4 = (SparseHourglass(c) for _ in range(3))
        self.classif0, self.classif1, self.classif2, self.classif3 = (_head(c) for _ in range(4))
        self._begin()

    @property
    def config(self) -> dict[str, int]:
        """The arguments that build this network again."""
        return {"maxdisp": self.maxdisp, "groups": self.groups, "concat": self.concat}

    @property
    def hourglasses(self) -> list[SparseHourglass]:
        """The three sparse mask modules."""
        return [self.dres2, self.dres3, self.dres4]

    @property
    def heads(self) -> list[nn.Sequential]:
        """Heads by number of hourglasses before them; the first three are used in training alone."""
        return [self.classif0, self.classif1, self.classif2, self.classif3]

    def parts(self) -> dict[str, Part]:
        """The hourglasses' convolutions and mask branches: each calls operators of its own."""
        named = {}
        for name in ("dres2", "dres3", "dres4"):
            hourglass = self.get_submodule(name)
            inner = {f"conv{number}": conv for number, conv in enumerate(hourglass.convs, 1)}
            named |= {f"{name}.{part}": Part(module, module) for part, module in inner.items()}
            named[f"{name}.locate"] = Part(hourglass.locate, hourglass.locate)
        return named

    def forward(self, pair) -> Tensor | list[Tensor]:
        """Pairs (`left` and `right`, (B, 3, H, W), multiples of 16) to disparities (B, H, W) in pixels.

        In training a list of those of all four heads, from the first to the last.
        """
        self.follow(pair)
        disparities, self.kept, self.hard_kept, self.masks = self.compute(pair.left, pair.right)
        return disparities if self.training else disparities[-1]

    def compute(self, left: Tensor, right: Tensor, masked: bool = True):
        """Compute as :meth:`forward`, without setting attributes: (disparities, kept, hard kept, masks)."""
        self._check(left, right)
        size = tuple(left.shape[-2:])
        x = self.aggregate(self.volume(left, right))
        disparities, kept, hard_kept, masks = [], [], [], []
        if self.training:
            disparities.append(self.regress(self.heads[0], x, size))
        for number, module in enumerate(self.hourglasses, 1):
            if masked:
                x, fractions, hard, mask = module(x, self.tau, self.noise)
                kept += fractions
                hard_kept += hard
                masks += mask
            else:
                x = module.everything(x)
            if self.training or number == 3:
                disparities.append(self.regress(self.heads[number], x, size))
        return disparities, kept, hard_kept, masks

    def volume(self, left: Tensor, right: Tensor) -> Tensor:
        """The cost volume (B, C, maxdisp/4, H/4, W/4), channels last in memory."""
        count, levels = len(left), self.maxdisp // 4
        images = to_channels_last(torch.cat([left, right]))
        features, concat_features = self.feature_extraction(images)  # batch norm sees both images at once
        volume = correlation_volume(features[:count], features[count:], levels, self.groups)
        if concat_features is None:
            return volume
        volume = torch.cat([volume, concatenation_volume(concat_features[:count], concat_features[count:], levels)], 1)
        return volume.contiguous(memory_format=torch.channels_last_3d)

    def aggregate(self, volume: Tensor) -> Tensor:
        """The convolutions before the hourglasses."""
        x = activate(self.dres0[2](activate(self.dres0[0](volume))))
        y = self.dres1[2](activate(self.dres1[0](x)))
        return y + x if torch.is_grad_enabled() else y.add_(x)

    def regress(self, head: nn.Sequential, x: Tensor, size: tuple[int, int]) -> Tensor:
        """The expected disparity under the softmax of a head's costs, (B, H, W)."""
        cost = head[2](activate(head[0](x)))
        return expected_disparity(cost[:, 0], self.maxdisp, size)

    def _begin(self) -> None:
        """Initialise convolutions as GwcNet does, and residual branches with a small batch norm scale.

        The shortest path from images to disparities then learns first (Goyal et al. 2017, arXiv 1706.02677, section
        5.1); otherwise the first hundred steps predict little more than mean disparities.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d) and module.bias is None:
                fan = module.out_channels * math.prod(module.kernel_size)
                nn.init.normal_(module.weight, 0, math.sqrt(2 / fan))
        added = [block.conv2 for block in self.modules() if isinstance(block, Residual)]
        for branch in (*added, self.dres1[2], *(hourglass.conv6 for hourglass in self.hourglasses)):
            nn.init.constant_(branch[1].weight, _ADDED)

    def _check(self, left: Tensor, right: Tensor) -> None:
        if left.shape != right.shape or left.ndim != 4 or left.shape[1] != 3:
            raise UseError(f"pictures of a pair differ: {tuple(left.shape)} and {tuple(right.shape)}")
        if left.shape[2] % SIZE or left.shape[3] % SIZE:
            raise UseError(f"pictures of {left.shape[3]}x{left.shape[2]}: both sides must be multiples of {SIZE}")


def expected_disparity(cost: Tensor, maxdisp: int, size: tuple[int, int]) -> Tensor:
    """Expected disparity under a softmax over upsampled costs.

    In evaluation disparities are processed one after the other, so that upsampled costs are never stored: each is
    interpolated between two coarse levels and weighted by its exponential relative to the largest fine cost.

    Args:
        cost: (B, D, h, w).
        maxdisp: disparities after upsampling.
        size: (H, W) after upsampling.

    Returns:
        (B, H, W), in pixels.
    """
    if torch.is_grad_enabled():
        cost = F.interpolate(cost[:, None], (maxdisp, *size), mode="trilinear", align_corners=False)[:, 0]
        values = torch.arange(maxdisp, dtype=cost.dtype, device=cost.device)
        return (F.softmax(cost, 1) * values.view(1, -1, 1, 1)).sum(1)
    wide = F.interpolate(cost, size, mode="bilinear", align_corners=False)
    levels, lowest = cost.shape[1], torch.finfo(cost.dtype).min
    blends: list[tuple[int, int, float]] = []  # of every disparity: two coarse levels, and the upper one's weight
    for d in range(maxdisp):
        at = max((d + 0.5) * levels / maxdisp - 0.5, 0.0)
        low = min(int(at), levels - 1)
        blends.append((low, min(low + 1, levels - 1), at - low))
    fine = lambda d: torch.lerp(wide[:, blends[d][0]], wide[:, blends[d][1]], blends[d][2])
    # Not the largest coarse cost: all fine costs may be far below it, and all exponentials vanish. Between two coarse
    # levels costs are linear, so that the largest is at an end.
    top = torch.full_like(wide[:, 0], lowest)
    for d in range(maxdisp):
        if d in (0, maxdisp - 1) or blends[d - 1][0] != blends[d][0] or blends[d + 1][0] != blends[d][0]:
            top = torch.maximum(top, fine(d))
    weight, value = torch.zeros_like(top), torch.zeros_like(top)
    for d in range(maxdisp):
        term = fine(d).sub_(top).exp_()
        weight += term
        value.add_(term, alpha=d)
    return value / weight


def _head(channels: int) -> nn.Sequential:
    return nn.Sequential(ConvNorm(channels, channels), nn.ReLU(), nn.Conv3d(channels, 1, 3, 1, 1, bias=False))
