"""The operator `sparsemask::block`: a sparse mask module's layers in turn, and the 1×1 convolution over all of them.

Each layer is a sparse mask convolution (:mod:`sparsemask.ops.conv`) without bias, fed by the one before and under the
same mask; their outputs are concatenated and fused (SMSR, Wang et al. 2021, section 3.2). Gradients reach x, weights
and the fusion's bias, computed densely.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sparsemask.errors import UseError
from sparsemask.ops import activation as act
from sparsemask.ops import conv, dispatch
from sparsemask.ops.checks import check_bias, check_kind, check_mask
from sparsemask.ops.conv import ConvCall
from sparsemask.ops.dense_part import dense_conv
from sparsemask.ops.geometry import Geometry
from sparsemask.ops.layout import along_channels, empty_like
from sparsemask.ops.registration import register

if TYPE_CHECKING:
    from sparsemask.backends import Backend

SCHEMA = (
    "(Tensor x, Tensor mask, Tensor[] weights, Tensor dense, Tensor collect_weight, Tensor? collect_bias, "
    "str activation, str backend) -> Tensor"
)


@dataclass(frozen=True, slots=True)
class BlockCall:
    """A module's layers and their fusion, the arguments checked.

    Attributes:
        x: features (N, C_in, *spatial).
        mask: bool (N, 1, *spatial); true where a location is kept. At least one location.
        weights: of each layer, (C, C_in or C, *kernel), odd kernels, sizes are kept; in the type of x.
        dense: bool (L, C), which channels each layer has everywhere. x is dense.
        collect_weight: of the fusion, (C_out, L·C, 1, ...); collect_bias: (C_out,) or None.
        activation: of the layers: "none", "relu" or "leaky_relu:SLOPE".
    """

    x: Tensor
    mask: Tensor
    weights: Sequence[Tensor]
    dense: Tensor
    collect_weight: Tensor
    collect_bias: Tensor | None
    activation: str

    @property
    def like(self) -> Tensor:
        """The features, whose layout and type the result has."""
        return self.x

    def served_by(self, backend: Backend) -> Tensor:
        """See :meth:`Call.served_by`."""
        return backend.block(self)

    def layers(self) -> Iterator[tuple[Tensor, Geometry, Tensor, Tensor]]:
        """Of each layer its weight, geometry, and dense input and output channels."""
        before = torch.ones(self.x.shape[1], dtype=torch.bool, device=self.x.device)
        for weight, after in zip(self.weights, self.dense.unbind(), strict=True):
            yield weight, conv.same_size(weight), before, after
            before = after

    def outputs(self, backend: Backend) -> list[Tensor]:
        """Every layer's output, by the convolutions of a backend."""
        features = [self.x]
        for weight, geometry, before, after in self.layers():
            layer = ConvCall(features[-1], weight, None, self.mask, before, after, geometry, self.activation)
            features.append(backend.conv(layer))
        return features[1:]


def compose(backend: Backend, call: BlockCall) -> Tensor:
    """The block from a backend's convolutions, the fusion's too."""
    joined = torch.cat(call.outputs(backend), 1)
    every = torch.ones(call.collect_weight.shape[0], dtype=torch.bool, device=joined.device)
    fusion = conv.same_size(call.collect_weight)
    return backend.conv(
        ConvCall(joined, call.collect_weight, call.collect_bias, call.mask, call.dense.flatten(), every, fusion, "none")
    )


def _run(x, mask, weights, dense, collect_weight, collect_bias, activation, backend) -> Tensor:
    call = checked(x, mask, weights, dense, collect_weight, collect_bias, activation)
    if not mask.numel():
        return empty_like(x, len(collect_weight), x.shape[2:])
    return dispatch.serve(call, backend)


def checked(x, mask, weights, dense, collect_weight, collect_bias, activation) -> BlockCall:
    """The call of an operator's arguments; UseError for those that do not fit."""
    if not weights:
        raise UseError("a block has at least one layer, got no weights")
    check_mask(mask, x, x.shape[2:])
    channels = weights[0].shape[0]
    if dense.dtype != torch.bool or tuple(dense.shape) != (len(weights), channels):
        wanted = (len(weights), channels)
        raise UseError(f"the channel masks must be bool {wanted}, got {dense.dtype} {tuple(dense.shape)}")
    n_in, kernel = x.shape[1], weights[0].shape[2:]
    for weight in weights:
        fits = weight.ndim == x.ndim and weight.shape[0] == channels and weight.shape[1] == n_in
        if not fits or weight.shape[2:] != kernel or any(k % 2 == 0 for k in kernel):
            raise UseError(
                f"weights {tuple(weight.shape)} do not fit a block of {n_in} to {channels} channels and one odd kernel"
            )
        n_in = channels
    if collect_weight.ndim != x.ndim or any(k != 1 for k in collect_weight.shape[2:]):
        raise UseError(f"the fusion is a 1×1 convolution, got weights {tuple(collect_weight.shape)}")
    if collect_weight.shape[1] != dense.numel():
        raise UseError(f"the 1×1 convolution takes {collect_weight.shape[1]} channels, the layers have {dense.numel()}")
    check_bias(collect_bias, collect_weight.shape[0])
    check_kind(x, activation, (mask, dense, collect_weight, collect_bias, *weights))
    kind = x.dtype
    collect_bias = collect_bias if collect_bias is None else collect_bias.to(kind)
    weights = [weight.to(kind) for weight in weights]
    return BlockCall(x, mask, weights, dense, collect_weight.to(kind), collect_bias, activation)


def _fake(x, mask, weights, dense, collect_weight, collect_bias, activation, backend) -> Tensor:
    return empty_like(x, collect_weight.shape[0], x.shape[2:])


def multiply_adds(mask: Tensor, weights: Sequence[Tensor], dense: Tensor, collect_weight: Tensor) -> int:
    """Multiply-adds of a block's layers and of its 1×1 convolution, which is split like them."""
    before, total = torch.ones(weights[0].shape[1], dtype=torch.bool, device=dense.device), 0
    for weight, after in zip(weights, dense, strict=True):
        total += conv.multiply_adds(weight, mask, before, after, conv.same_size(weight))
        before = after
    every = torch.ones(collect_weight.shape[0], dtype=torch.bool, device=dense.device)
    return total + conv.multiply_adds(collect_weight, mask, dense.flatten(), every, conv.same_size(collect_weight))


def _flops(x, mask, weights, dense, collect_weight, *_, out_val=None) -> int:
    return 2 * multiply_adds(mask, weights, dense, collect_weight)


# Gradients


def gradients(grad: Tensor, call: BlockCall) -> tuple[Tensor, list[Tensor], Tensor, Tensor]:
    """Gradients to x, weights, collect_weight and collect_bias; features are computed again."""
    x, channels = call.x, call.weights[0].shape[0]
    layers, features = [], [x]
    for weight, geometry, before, after in call.layers():
        layers.append(ConvCall(features[-1], weight, None, call.mask, before, after, geometry, call.activation))
        features.append(_masked(layers[-1]))
    joined, fusion = torch.cat(features[1:], 1), call.collect_weight
    to_features, to_collect = conv.convolution_backward(grad, joined, fusion, conv.same_size(fusion))
    to_bias = grad.sum([0, *range(2, grad.ndim)])
    to_layer, to_weights, to_x = to_features.split(channels, 1), [], torch.zeros_like(x)
    for number in reversed(range(len(layers))):
        whole = to_layer[number] + (to_x if number + 1 < len(layers) else 0)
        to_x, to_weight, _ = conv.gradients(whole, layers[number], features[number + 1])
        to_weights.insert(0, to_weight)
    return to_x, to_weights, to_collect, to_bias


def _masked(call: ConvCall) -> Tensor:
    """The dense form without a look at the masks' content, which a traced backward cannot have."""
    x, weight, geometry = call.x, call.weight, call.geometry
    whole = act.apply(call.activation, dense_conv(x, weight, None, geometry))
    part = act.apply(call.activation, dense_conv(x * along_channels(call.in_dense, x), weight, None, geometry))
    return torch.where(call.mask, whole, part * along_channels(call.out_dense, part))


def _save(ctx, inputs, output) -> None:
    x, mask, weights, dense, collect_weight, collect_bias, ctx.activation, _ = inputs
    ctx.biased = collect_bias is not None
    ctx.save_for_backward(x, mask, dense, collect_weight, *weights)


def _backward(ctx, grad):
    x, mask, dense, *weights = ctx.saved_tensors
    collect_weight, *weights = (weight.to(x.dtype) for weight in weights)
    call = BlockCall(x, mask, weights, dense, collect_weight, None, ctx.activation)
    to_x, to_weights, to_collect, to_bias = gradients(grad, call)
    return to_x, None, to_weights, None, to_collect, to_bias if ctx.biased else None, None, None


register("block", _run, schema=SCHEMA, fake=_fake, flops=_flops, backward=_backward, save=_save)
