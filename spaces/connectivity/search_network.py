"""The Fully Dense Network, every possible connection with a weight to be learnt; and the decoder's schedule.

:func:`decode` is the schedule, which pruned networks share. Two identities keep it cheap: a concatenation followed by a
convolution is a sum of convolutions, and a 1x1 convolution commutes with bilinear upsampling. So every feature is
convolved once, at its own size, for all stages that take it, and what a stage gets of one size is summed before it is
upsampled once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsemask.errors import UseError
from sparsemask.masks import DOWN, UP
from sparsemask.spaces.backbones import create, is_backbone

# product(kind, j, x): contributions (stage i, tensor of the stage's channels) of feature j, DOWN (E_j) or UP (u_j)
Product = Callable[[int, int, Tensor], Iterable[tuple[int, Tensor]]]


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


def decode(
    end_points: Sequence[Tensor | None],
    used: Callable[[int, int], bool],
    product: Product,
    finish: Callable[[int, Tensor], Tensor],
    refine: Callable[[int, Tensor], Tensor] | None = None,
) -> Tensor:
    """Run the decoder stages from the deepest and return the output of the last one with inputs, (B, depth, H, W).

    Args:
        end_points: E_0 ... E_{L-1}, deepest first, before activation; None where no stage reads it or has its size.
        used: whether any stage reads feature j of a kind; unused features are not computed.
        product: convolves one activated feature for all stages that read it.
        finish: applied by a stage to the sum of its inputs (batch norm), before relu6.
        refine: applied by a stage after relu6; None: nothing is.
    """
    # A tensor of each size; sizes are compared, not hashed: they are open where a network is exported.
    sums: list[list[Tensor]] = [[] for _ in end_points]

    def spread(kind: int, j: int, x: Tensor) -> None:
        for stage, y in product(kind, j, x):
            alike = (n for n, partial in enumerate(sums[stage]) if partial.shape[-2:] == y.shape[-2:])
            if (at := next(alike, None)) is None:
                sums[stage].append(y)
            else:
                sums[stage][at] = sums[stage][at] + y

    if used(UP, 0):
        spread(UP, 0, F.relu6(end_points[0].mean((2, 3), keepdim=True)))
    output = None
    for i, end_point in enumerate(end_points):
        if used(DOWN, i):
            spread(DOWN, i, F.relu6(end_point))
        if sums[i]:
            # A constant map alone is a view of one value a channel, which cannot be changed in place.
            constant = len(sums[i]) == 1 and sums[i][0].shape[-2:] == (1, 1)
            total = finish(i, _total(sums[i], end_point.shape[-2:]))
            output = F.relu6(total, inplace=not constant)
            if refine is not None:
                output = refine(i, output)
            sums[i] = []
            if i + 1 < len(end_points) and used(UP, i + 1):
                spread(UP, i + 1, output)
    return output


def _total(sums: list[Tensor], size: torch.Size) -> Tensor:
    """Sum of tensors of several sizes at `size`; a constant map joins the smallest before upsampling."""
    by_area = sorted(sums, key=lambda y: y.shape[-2] * y.shape[-1])
    total = None
    constant = None
    for y in by_area:
        if y.shape[-2:] == (1, 1) and len(by_area) > 1:
            constant = y
            continue
        if constant is not None:
            y, constant = y + constant, None
        y = upsample(y, size)
        total = y if total is None else total + y
    return total


def upsample(x: Tensor, size: Sequence[int]) -> Tensor:
    """Resize (B, C, h, w) bilinearly to `size` (H, W), corners aligned; returned as it is if the size is right."""
    size = tuple(size)
    if tuple(x.shape[-2:]) == size:
        return x
    if tuple(x.shape[-2:]) == (1, 1):
        return x.expand(*x.shape[:2], *size)
    return F.interpolate(x, size=size, mode="bilinear", align_corners=True)


@contextlib.contextmanager
def batch_norm_errors() -> Iterator[None]:
    """Turn torch's error for batch statistics of a single value per channel into a UseError."""
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise UseError(
            "a batch of 1 has no batch statistics: batch norm needs two values per channel when training; "
            "use --batch_size 2 or more, or --freeze_bn"
        ) from None
