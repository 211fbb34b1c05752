"""The Fully Dense Network: every possible connection, each with a weight to be learnt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.masks import DOWN, UP
from sparsemask.spaces.backbones import create, is_backbone
from sparsemask.spaces.connectivity.fusion import batch_norm_errors, decode, upsample


class SearchStage(nn.Module):
    """Parameters of one decoder stage; the arithmetic is shared, see :func:`normalised_product`.

    `_weight_` is (i+1, 2): column 0 weighs E_0 ... E_i, column 1 weighs u_0 ... u_i.
    """

    def __init__(self, down_channels: Sequence[int], up_channels: Sequence[int], depth: int, momentum: float):
        super().__init__()
        self._weight_ = nn.Parameter(torch.ones(len(down_channels), 2))
        self.down_convs = nn.ModuleList(_connection(c, depth, momentum) for c in down_channels)
        self.up_convs = nn.ModuleList(_connection(c, depth, momentum) for c in up_channels)
        self.bn = nn.BatchNorm2d(depth, momentum=momentum)


def _connection(channels: int, depth: int, momentum: float) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, depth, 1, bias=False), nn.BatchNorm2d(depth, momentum=momentum))


class FullyDenseNetwork(nn.Module):
    """The supernet of the connectivity search (Wu, Zhang, Huang 2019, arXiv 1904.07642, section 3.1).

    Args:
        backbone_name: name of a registered backbone, or a backbone already built.
        depth: channels of every decoder stage.
        in_channels: channels of the input image.
        num_classes: channels of the output.
        bn_momentum: of all running statistics (published: 0.0003; short runs want more).
        noise_std: standard deviation of the noise on the connection weights when training.
        backbone_options: further arguments of the backbone's builder, such as its form.
    """

    def __init__(
        self,
        backbone_name: str | nn.Module = "mobilenet_v2",
        depth: int = 64,
        in_channels: int = 3,
        num_classes: int = 21,
        bn_momentum: float = 0.0003,
        noise_std: float = 0.1,
        **backbone_options,
    ):
        super().__init__()
        self.backbone = build_backbone(backbone_name, in_channels, bn_momentum, backbone_options)
        down = list(self.backbone.channels)
        up = [down[0]] + [depth] * (len(down) - 1)
        self.decoders = nn.ModuleDict(
            {f"Decoders_{i}": SearchStage(down[: i + 1], up[: i + 1], depth, bn_momentum) for i in range(len(down))}
        )
        self.fc_conv = nn.Conv2d(depth, num_classes, 1)
        self.noise_std = noise_std
        self._noise: list[Tensor] | None = None
        self._last_weights: list[Tensor] | None = None
        init_convolutions(self.decoders, self.fc_conv)
        self.freeze_bn_affine()

    @property
    def stages(self) -> list[SearchStage]:
        """Decoder stages, deepest first."""
        return list(self.decoders.values())

    def forward(self, x: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """(B, C, H, W) -> scores (B, classes, h, w) at the last stage's size, or upsampled to `size`."""
        stages = self.stages
        weights = self._last_weights = self._sample_weights()
        silent = self._silent(weights)

        def product(kind: int, j: int, x: Tensor) -> Iterator[tuple[int, Tensor]]:
            takers = [i for i in range(j, len(stages)) if (i, j, kind) not in silent]
            if not takers:
                return
            pairs = [(stages[i].up_convs if kind == UP else stages[i].down_convs)[j] for i in takers]
            w = torch.stack([weights[i][j, kind] for i in takers])
            products, constants = normalised_product(x, [p[0] for p in pairs], [p[1] for p in pairs], w)
            depth = products.shape[1] // len(takers)
            constants = constants.to(products).view(len(takers), 1, depth, 1, 1)
            for i, y, constant in zip(takers, products.split(depth, 1), constants, strict=True):
                yield i, y
                yield i, constant

        with batch_norm_errors():
            features = decode(self.backbone(x), lambda kind, j: True, product, lambda i, total: stages[i].bn(total))
        logits = self.fc_conv(features)
        return logits if size is None else upsample(logits, size)

    def raw_weights(self) -> list[Tensor]:
        """The raw weight parameters W_0 ... W_{L-1}, of shape (i+1, 2)."""
        return [stage._weight_ for stage in self.stages]

    def connection_weights(self) -> list[Tensor]:
        """The weights in [0, 2] that the last forward pass used (noise added, then clamped), with their graph."""
        if self._last_weights is None:
            return [w.clamp(0, 2) for w in self.raw_weights()]
        return self._last_weights

    def sample_noise(self, generator: torch.Generator | None = None) -> list[Tensor]:
        """Draw N(0, 1) noise on the CPU, keep it for the forward passes to come and return it.

        One seeded generator on every process gives every process the same noise.
        """
        noise = [torch.randn(w.shape, generator=generator) for w in self.raw_weights()]
        self.set_noise(noise)
        return noise

    def set_noise(self, noise: Sequence[Tensor] | None) -> None:
        """Fix the N(0, 1) noise until it is set again; None: every training forward pass draws its own."""
        if noise is not None and [n.shape for n in noise] != [w.shape for w in self.raw_weights()]:
            raise ValueError("noise must have the shapes of raw_weights()")
        self._noise = None if noise is None else list(noise)

    @torch.no_grad()
    def clamp_weights_(self) -> None:
        """Clamp the raw weights to [0, 2], in place; call it after every optimizer step."""
        for w in self.raw_weights():
            w.clamp_(0, 2)

    def freeze_bn_affine(self) -> None:
        """Freeze the scales and shifts of all batch norms; their statistics still move."""
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.requires_grad_(False)

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_last_weights": None}  # part of a graph: neither copied nor pickled

    def _sample_weights(self) -> list[Tensor]:
        raw = self.raw_weights()
        if not self.training:
            return [w.clamp(0, 2) for w in raw]
        noise = self._noise or [torch.randn(w.shape) for w in raw]
        return [(w + self.noise_std * n.to(w)).clamp(0, 2) for w, n in zip(raw, noise, strict=True)]

    def _silent(self, weights: Sequence[Tensor]) -> set[tuple[int, int, int]]:
        """Connections (i, j, kind) of weight zero that may be skipped: when nothing is learnt or tracked."""
        if self.training or torch.is_grad_enabled():
            return set()
        return {
            (i, j, kind)
            for i, w in enumerate(weights)
            for j, row in enumerate(w.tolist())
            for kind in (DOWN, UP)
            if row[kind] == 0
        }


def build_backbone(name: str | nn.Module, in_channels: int, momentum: float, options: dict) -> nn.Module:
    """Build a backbone by name, or return the module given.

    Args:
        name: a backbone's name, a class, or a module.
        in_channels: channels of the input image.
        momentum: of all running statistics.
        options: further arguments of the builder; the last three are ignored for a module.

    Raises:
        UseError: unknown name, or a module that is no :class:`sparsemask.spaces.backbones.Backbone`.
    """
    if isinstance(name, str | type):
        return create(name, in_channels, momentum=momentum, **options)
    if not is_backbone(name):
        raise UseError(
            f"{type(name).__name__} is no backbone: it needs `channels` and `strides`, one per end point, deepest first"
        )
    return name


def init_convolutions(*modules: nn.Module) -> None:
    """Kaiming normal (fan out) for convolutions, zero for their biases."""
    for module in modules:
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


def normalised_product(
    x: Tensor, convs: Sequence[nn.Conv2d], norms: Sequence[nn.BatchNorm2d], w: Tensor
) -> tuple[Tensor, Tensor]:
    """w_k * BN_k(conv_k(x)) for all connections k of one feature, less a constant per channel; none is materialised.

    Batch norm after a 1x1 convolution needs the mean and variance of W x over the batch. With the feature centred
    they follow from its covariance, var(W x)_c = W_c cov(x) W_c^T, so that normalisation and connection weight
    fold into the matrix, and one product with the folded matrix is all that happens at the feature's size. Where
    a feature has more channels than the product (the 1280 of E_0), the variance comes from the plain product.

    Args:
        x: (B, C, H, W), activated.
        convs, norms: K convolutions 1x1 without bias to `depth` channels, and their batch norms.
        w: (K,) connection weights.

    Returns:
        Products (B, K * depth, H, W), and the constants (K * depth,) to be added to them. Running statistics
        move as the batch norms' own would. ValueError, as torch's, where a batch has one value a channel.
    """
    weight = torch.cat([conv.weight for conv in convs]).flatten(1)
    gamma = torch.cat([norm.weight for norm in norms])
    beta = torch.cat([norm.bias for norm in norms])
    w = w.repeat_interleave(convs[0].out_channels)
    products = None
    with torch.autocast(x.device.type, enabled=False):  # statistics of half precision would be worth little
        if norms[0].training:
            x, products, var = _statistics(x.to(weight.dtype), weight, norms)
            scale = w * gamma * torch.rsqrt(var + norms[0].eps)
            constant = w * beta
        else:
            scale = w * gamma * torch.rsqrt(torch.cat([norm.running_var for norm in norms]) + norms[0].eps)
            constant = w * beta - scale * torch.cat([norm.running_mean for norm in norms])
    if products is None:
        return _conv(x, scale[:, None] * weight), constant
    return products * scale[:, None, None], constant


def _statistics(x: Tensor, weight: Tensor, norms: Sequence[nn.BatchNorm2d]) -> tuple[Tensor, Tensor | None, Tensor]:
    """The centred feature, its product where that was needed, the product's variance; statistics move."""
    count = x.numel() // x.shape[1]
    if count < 2:
        raise ValueError(f"expected more than 1 value per channel when training, got {tuple(x.shape)}")
    mean = x.mean((0, 2, 3))
    x = x - mean[:, None, None]
    products = None
    if weight.shape[1] <= weight.shape[0]:
        flat = x.flatten(2)
        covariance = torch.bmm(flat, flat.transpose(1, 2)).sum(0) / count
        var = ((weight @ covariance) * weight).sum(1).clamp_min(0)
    else:
        products = _conv(x, weight)
        var = products.square().mean((0, 2, 3))
    with torch.no_grad():
        _move_running(norms, weight @ mean, var * (count / (count - 1)))
    return x, products, var


def _conv(x: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(x, weight[:, :, None, None])


def _move_running(norms: Sequence[nn.BatchNorm2d], mean: Tensor, var: Tensor) -> None:
    """One step of the running statistics, with the momentum (None: cumulative average) of each batch norm."""
    depth = norms[0].num_features
    for norm, its_mean, its_var in zip(norms, mean.split(depth), var.split(depth), strict=True):
        norm.num_batches_tracked += 1
        momentum = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
        norm.running_mean.lerp_(its_mean.to(norm.running_mean), momentum)
        norm.running_var.lerp_(its_var.to(norm.running_var), momentum)
