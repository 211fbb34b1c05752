"""The operator `sparsemask::masked_network`: an encoder's masked blocks and the stages of its decoder, in one call.

It is what exported programs have of a specialised network: a call a block costs more than a small block computes, and
so does fetching its weights. These are in one tensor, which is known again by being the same one, not compared. For
inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsemask.ops import dispatch, inverted_residual, multiscale_sum, predict_mask
from sparsemask.ops.packed import Packed, Packer, Reader
from sparsemask.ops.registration import register
from sparsemask.ops.weight_cache import Lasting

Branch = tuple
"""Weights and biases of a mask branch, as :func:`sparsemask.ops.predict_mask.locate` takes them, and the threshold."""
SCHEMA = "(Tensor x, Tensor numbers, Tensor flags, int[] layout, float[] reals, str backend) -> Tensor"
_HEADER = 2  # of the layout: channels of the output, and how often x is halved to its size


@dataclass(frozen=True)
class Stage:
    """A stage, as :func:`sparsemask.ops.multiscale_sum.fuse_scales` is told of it.

    Attributes:
        point: the feature whose size it has, its mask's too.
        sources: (whether a feature or an earlier stage, its number, weights (C, C_j, 1, 1), whether relu6 of it is
            read) of all it sums.
        bias: (C,).
        masked: whether it has a mask.
        dense: channels of dropped places.
    """

    point: int
    sources: Sequence[tuple[bool, int, Tensor, bool]]
    bias: Tensor
    masked: bool
    dense: int


@dataclass(frozen=True)
class MaskedNetworkWeights:
    """A network's weights.

    Attributes:
        blocks: of each its branch or None, and what :func:`sparsemask.ops.inverted_residual.inverted_residual` takes
            after the mask, or weights and bias of a 1×1 convolution; relu6 of x goes through them in turn.
        points: which outputs are features, deepest first; -1: x.
        mean: whether the mean of the first feature is one more, the last.
        stages: the last one's output is the network's.
        branches: of each stage that is masked, on relu6 of its feature.
    """

    blocks: Sequence[tuple[Branch | None, tuple]]
    points: Sequence[int]
    mean: bool
    stages: Sequence[Stage]
    branches: Sequence[Branch | None]


def pack(weights: MaskedNetworkWeights) -> Packed:
    """Weights as the operator takes them."""
    packer = Packer()
    last = weights.stages[-1]
    behind = weights.points[last.point] + 1  # blocks before it
    halved = sum(len(block) > 2 and block[-2] == 2 for _, block in weights.blocks[:behind])
    packer.word(len(last.bias), halved, len(weights.blocks))
    for branch, block in weights.blocks:
        _pack_branch(packer, branch)
        alone = len(block) == 2
        packer.word(alone)
        packer.tensor(*(block if alone else block[:-2]))
        if not alone:
            packer.word(*block[-2:])
    packer.word(len(weights.points), *weights.points, weights.mean, len(weights.stages))
    for stage, branch in zip(weights.stages, weights.branches, strict=True):
        packer.word(stage.point, stage.masked, stage.dense, len(stage.sources))
        for feature, number, weight, limited in stage.sources:
            packer.word(feature, number, limited)
            packer.tensor(weight)
        packer.tensor(stage.bias)
        _pack_branch(packer, branch)
    return packer.packed()


def _pack_branch(packer: Packer, branch: Branch | None) -> None:
    packer.word(branch is not None)
    if branch is not None:
        packer.tensor(*branch[:-1])
        packer.real(branch[-1])


def unpack(packed: Packed) -> MaskedNetworkWeights:
    """The weights again, as views of the packed ones."""
    reader = Reader(packed)
    word, tensor = reader.word, reader.tensor

    def branch() -> Branch | None:
        return (*(tensor() for _ in range(6)), reader.real()) if word() else None

    for _ in range(_HEADER):
        word()
    blocks: list[tuple[Branch | None, tuple]] = []
    for _ in range(word()):
        own = branch()
        if word():
            blocks.append((own, (tensor(), tensor())))
        else:
            blocks.append((own, (*(reader.maybe() for _ in range(9)), word(), bool(word()))))
    points = [word() for _ in range(word())]
    mean = bool(word())
    stages: list[Stage] = []
    branches = []
    for _ in range(word()):
        point, masked, dense, count = (word() for _ in range(4))
        sources = []
        for _ in range(count):
            feature, number, limited = (word() for _ in range(3))
            sources.append((bool(feature), number, tensor(), bool(limited)))
        stages.append(Stage(point, sources, tensor(), bool(masked), dense))
        branches.append(branch())
    return MaskedNetworkWeights(blocks, points, mean, stages, branches)


_prepared: Lasting[tuple] = Lasting()


def masked_network(x: Tensor, packed: Packed, backend: str = "auto") -> Tensor:
    """The last stage's output (N, C, h, w), channels last.

    Args:
        x: features (N, C, H, W), before relu6.
        packed: weights.
        backend: of its own it has `native`; `auto` means it where it can compute.
    """
    return torch.ops.sparsemask.masked_network(x, packed.numbers, packed.flags, packed.layout, packed.reals, backend)


def _run(x: Tensor, numbers: Tensor, flags: Tensor, layout: list[int], reals: list[float], backend: str) -> Tensor:
    chosen = dispatch.able_or_reference(backend, x)

    def prepare() -> tuple:
        weights = unpack(Packed(numbers, flags, layout, reals))
        return weights, chosen.masked_network(weights)

    weights, whole = _prepared.get([numbers, flags], chosen, prepare)
    return whole(x) if whole is not None and x.numel() else _by_operators(x, weights, backend)


def _by_operators(x: Tensor, weights: MaskedNetworkWeights, backend: str, counts: list[int] | None = None) -> Tensor:
    """Block by block, stage by stage; counts: multiplies and adds of each part are appended."""

    def located(x: Tensor, branch: Branch | None, limited: bool) -> Tensor | None:
        if branch is None:
            return None
        if counts is not None:
            counts.append(predict_mask.count_flops(x, *branch[:-1]))
        return predict_mask.locate(x, *branch, limited, backend)

    features, y = [x], F.relu6(x)
    for branch, block in weights.blocks:
        mask, given = located(y, branch, False), y
        if len(block) == 2:
            y = F.conv2d(y, *block)
        else:
            y = inverted_residual.inverted_residual(y, mask, *block, backend)
        if counts is not None:
            alone = 2 * given[:, 0].numel() * block[0].numel()
            counts.append(alone if len(block) == 2 else inverted_residual.count_flops(given, mask, *block))
        features.append(y)
    points = [features[number + 1] for number in weights.points]
    if weights.mean:
        points.append(points[0].mean((2, 3), keepdim=True))
    outputs: list[Tensor] = []
    for stage, branch in zip(weights.stages, weights.branches, strict=True):
        xs = [points[number] if feature else outputs[number] for feature, number, _, _ in stage.sources]
        kernels, limited = ([source[k] for source in stage.sources] for k in (2, 3))
        at = points[stage.point]
        mask = located(at, branch, True)
        given = (xs, kernels, limited, stage.bias, mask, stage.dense, *at.shape[2:])
        outputs.append(multiscale_sum.fuse_scales(*given, backend))
        if counts is not None:
            counts.append(multiscale_sum.count_flops(*given))
    return outputs[-1]


def _fake(x, numbers, flags, layout, reals, backend):
    channels, halved = layout[:_HEADER]
    height, width = x.shape[2:]
    for _ in range(halved):
        height, width = (height + 1) // 2, (width + 1) // 2
    size = (x.shape[0], channels, height, width)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _flops(x, numbers, flags, layout, reals, backend, *_, out_val=None, **__) -> int:
    """Of its parts, which are computed again: masks say what they cost."""
    counts: list[int] = []
    _by_operators(x, unpack(Packed(numbers, flags, layout, reals)), backend, counts)
    return sum(counts)


register("masked_network", _run, schema=SCHEMA, fake=_fake, flops=_flops)
