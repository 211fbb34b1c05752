"""The 80 networks of bench/zoo.py: 60 of timm, 14 of segmentation_models_pytorch, 6 for super-resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.torchvision_import import import_torchvision

TIMM = """resnet18 resnet26t resnet50 resnetv2_50 resnext50_32x4d wide_resnet50_2 seresnet50 ecaresnet26t skresnet18
    resnest14d res2net50_26w_4s cspresnet50 cspdarknet53 darknet53 dla34 densenet121 vgg11_bn vgg16 inception_v3
    inception_v4 inception_resnet_v2 xception41 mobilenetv2_100 mobilenetv3_small_100 mobilenetv3_large_100
    mobilenetv4_conv_small efficientnet_b0 tf_efficientnetv2_b0 mnasnet_100 mixnet_s fbnetc_100 spnasnet_100
    ghostnet_100 hardcorenas_a lcnet_100 tinynet_e rexnet_100 regnetx_004 regnety_004 repvgg_a0 hrnet_w18_small
    selecsls42b ese_vovnet19b_dw dpn68 nf_resnet26 dm_nfnet_f0 eca_nfnet_l0 convnext_atto convnextv2_atto poolformer_s12
    edgenext_xx_small mobilevit_xxs mobilevitv2_050 fastvit_t8 repvit_m0_9 mobileone_s0 gcresnext26ts levit_128s
    vit_tiny_patch16_224 swin_tiny_patch4_window7_224""".split()
SMP = """Unet:resnet18 Unet:mobilenet_v2 Unet:efficientnet-b0 UnetPlusPlus:resnet18 MAnet:resnet18 Linknet:resnet18
    FPN:resnet18 FPN:efficientnet-b0 PSPNet:resnet18 DeepLabV3:resnet18 DeepLabV3Plus:resnet18
    DeepLabV3Plus:mobilenet_v2 PAN:resnet18 UPerNet:resnet18""".split()


class SRCNN(nn.Sequential):
    """Dong et al. (arXiv 1501.00092): three convolutions on the enlarged image."""

    def __init__(self) -> None:
        shapes = ((3, 64, 9), (64, 32, 5), (32, 3, 5))
        convs = [nn.Conv2d(a, b, k, padding=k // 2) for a, b, k in shapes]
        super().__init__(nn.Upsample(scale_factor=2), convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2])


class ESPCN(nn.Sequential):
    """Shi et al. (arXiv 1609.05158): `PixelShuffle` at the end."""

    def __init__(self) -> None:
        shapes = ((3, 64, 5), (64, 32, 3), (32, 12, 3))
        convs = [nn.Conv2d(a, b, k, padding=k // 2) for a, b, k in shapes]
        super().__init__(convs[0], nn.Tanh(), convs[1], nn.Tanh(), convs[2], nn.PixelShuffle(2))


class FSRCNN(nn.Sequential):
    """Dong et al. (arXiv 1608.00367): narrow in the middle, a transposed convolution at the end."""

    def __init__(self) -> None:
        middle = [part for _ in range(4) for part in (nn.Conv2d(12, 12, 3, padding=1), nn.PReLU(12))]
        first = (nn.Conv2d(3, 56, 5, padding=2), nn.PReLU(56), nn.Conv2d(56, 12, 1), nn.PReLU(12))
        last = (nn.Conv2d(12, 56, 1), nn.PReLU(56), nn.ConvTranspose2d(56, 3, 9, 2, 4, 1))
        super().__init__(*first, *middle, *last)


class ResidualBlock(nn.Module):
    """EDSR's block; with channel attention RCAN's (Zhang et al., arXiv 1807.02758)."""

    def __init__(self, width: int, attention: bool):
        super().__init__()
        self.first, self.second = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        squeeze = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, width // 8, 1), nn.ReLU(), nn.Conv2d(width // 8, width, 1))
        self.attention = nn.Sequential(*squeeze, nn.Sigmoid()) if attention else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.second(F.relu(self.first(x)))
        return x + (y if self.attention is None else y * self.attention(y))


class ResidualSR(nn.Module):
    """EDSR (Lim et al., arXiv 1707.02921) or RCAN in small: blocks, a long shortcut, a wide `PixelShuffle`."""

    def __init__(self, attention: bool, width: int = 64, blocks: int = 8):
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(ResidualBlock(width, attention) for _ in range(blocks)))
        self.up = nn.Sequential(nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2))
        self.tail = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(x)
        return self.tail(self.up(x + self.body(x)))


class Distillation(nn.Module):
    """IMDN's block (Hui et al., arXiv 1909.11856): a quarter of the channels is split off after every convolution."""

    def __init__(self, width: int):
        super().__init__()
        kept, rest = width // 4, width - width // 4
        self.sizes = [kept, rest]
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.middle = nn.ModuleList(nn.Conv2d(rest, width, 3, padding=1) for _ in range(2))
        self.last, self.join = nn.Conv2d(rest, kept, 3, padding=1), nn.Conv2d(4 * kept, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept, rest = torch.split(F.leaky_relu(self.first(x), 0.05), self.sizes, 1)
        parts = [kept]
        for conv in self.middle:
            kept, rest = torch.split(F.leaky_relu(conv(rest), 0.05), self.sizes, 1)
            parts.append(kept)
        return x + self.join(torch.cat([*parts, self.last(rest)], 1))


class IMDN(nn.Module):
    """Distillation blocks, all of whose outputs are joined."""

    def __init__(self, width: int = 64, blocks: int = 4):
        super().__init__()
        self.head, self.blocks = (
            nn.Conv2d(3, width, 3, padding=1),
            nn.ModuleList(Distillation(width) for _ in range(blocks)),
        )
        self.join, self.tail = nn.Conv2d(blocks * width, width, 1), nn.Conv2d(width, 12, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        y, parts = self.head(x), []
        first = y
        for block in self.blocks:
            y = block(y)
            parts.append(y)
        return F.pixel_shuffle(self.tail(first + F.leaky_relu(self.join(torch.cat(parts, 1)), 0.05)), 2)


SUPER_RESOLUTION = {
    "SRCNN": SRCNN,
    "ESPCN": ESPCN,
    "FSRCNN": FSRCNN,
    "EDSR": lambda: ResidualSR(False),
    "RCAN": lambda: ResidualSR(True),
    "IMDN": IMDN,
}

NAMES = [*(f"timm/{name}" for name in TIMM), *(f"smp/{name}" for name in SMP), *(f"sr/{n}" for n in SUPER_RESOLUTION)]


def build(name: str, side: int) -> tuple[nn.Module, Tensor]:
    """A network with random weights and lively statistics, and an input of the size that it is measured with."""
    torch.manual_seed(0)
    source, _, name = name.partition("/")
    if source == "timm":
        import_torchvision()
        import timm

        config = timm.get_pretrained_cfg(name)
        side = config.input_size[-1] if config is not None and config.fixed_input_size else side
        network = timm.create_model(name, num_classes=100)
    elif source == "smp":
        import_torchvision()
        import segmentation_models_pytorch as smp

        kind, _, encoder = name.partition(":")
        network = smp.create_model(kind, encoder, encoder_weights=None, classes=8)
    else:
        network, side = SUPER_RESOLUTION[name](), side // 2
    return enliven(network, torch.randn(2, 3, side, side)), torch.randn(1, 3, side, side)


@torch.no_grad()
def enliven(network: nn.Module, batch: Tensor) -> nn.Module:
    """Give batch norms the statistics of a batch, and scales and shifts of their own, as a trained network has."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.3)
        norm.momentum = 1.0
    network.train()(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return network.eval()
