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
from sparsemask.ops.registration import register
from sparsemask.ops.weight_cache import Lasting

Branch = tuple
"""Weights and biases of a mask branch, as :func:`sparsemask.ops.predict_mask.locate` takes them, and the threshold."""
SCHEMA = "(Tensor x, Tensor numbers, Tensor flags, int[] layout, float[] thresholds, str backend) -> Tensor"
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


@dataclass(frozen=True)
class Packed:
    """The same as the operator takes it: all weights in a tensor, all flags in another, and how they lie there."""

    numbers: Tensor
    flags: Tensor
    layout: list[int]
    thresholds: list[float]


class _Packer:
    def __init__(self) -> None:
        self.numbers: list[Tensor] = []
        self.flags: list[Tensor] = []
        self.layout: list[int] = []
        self.thresholds: list[float] = []

    def tensor(self, tensor: Tensor | None) -> None:
        if tensor is None:
            self.layout.append(-1)
            return
        flag = tensor.dtype == torch.bool
        self.layout += [tensor.ndim, *tensor.shape, int(flag)]
        (self.flags if flag else self.numbers).append(tensor.detach().flatten())

    def branch(self, branch: Branch | None) -> None:
        self.layout.append(int(branch is not None))
        if branch is not None:
            for tensor in branch[:-1]:
                self.tensor(tensor)
            self.thresholds.append(float(branch[-1]))


class _Reader:
    def __init__(self, packed: Packed):
        self._left = {False: packed.numbers, True: packed.flags}
        self._at = {False: 0, True: 0}
        self._words, self._thresholds = iter(packed.layout), iter(packed.thresholds)

    def word(self) -> int:
        return next(self._words)

    def tensor(self) -> Tensor | None:
        ndim = self.word()
        if ndim < 0:
            return None
        shape = [self.word() for _ in range(ndim)]
        flag = bool(self.word())
        count = torch.Size(shape).numel()
        start = self._at[flag]
        self._at[flag] += count
        return self._left[flag][start : start + count].view(shape)

    def branch(self) -> Branch | None:
        return (*(self.tensor() for _ in range(6)), next(self._thresholds)) if self.word() else None


def pack(weights: MaskedNetworkWeights) -> Packed:
    """Weights as the operator takes them."""
    packer = _Packer()
    last = weights.stages[-1]
    behind = weights.points[last.point] + 1  # blocks before it
    halved = sum(len(block) > 2 and block[-2] == 2 for _, block in weights.blocks[:behind])
    packer.layout += [len(last.bias), halved, len(weights.blocks)]
    for branch, block in weights.blocks:
        packer.branch(branch)
        alone = len(block) == 2
        packer.layout.append(int(alone))
        for tensor in block if alone else block[:-2]:
            packer.tensor(tensor)
        if not alone:
            packer.layout += [block[-2], int(block[-1])]
    packer.layout += [len(weights.points), *weights.points, int(weights.mean), len(weights.stages)]
    for stage, branch in zip(weights.stages, weights.branches, strict=True):
        packer.layout += [stage.point, int(stage.masked), stage.dense, len(stage.sources)]
        for feature, number, weight, limited in stage.sources:
            packer.layout += [int(feature), number, int(limited)]
            packer.tensor(weight)
        packer.tensor(stage.bias)
        packer.branch(branch)
    numbers = torch.cat(packer.numbers)
    flags = torch.cat(packer.flags) if packer.flags else torch.zeros(0, dtype=torch.bool)
    return Packed(numbers, flags, [int(n) for n in packer.layout], packer.thresholds)


def unpack(packed: Packed) -> MaskedNetworkWeights:
    """The weights again, as views of the packed ones."""
    reader = _Reader(packed)
    for _ in range(_HEADER):
        reader.word()
    blocks = []
    for _ in range(reader.word()):
        branch = reader.branch()
        if reader.word():
            blocks.append((branch, (reader.tensor(), reader.tensor())))
        else:
            blocks.append((branch, (*(reader.tensor() for _ in range(9)), reader.word(), bool(reader.word()))))
    points = [reader.word() for _ in range(reader.word())]
    mean = bool(reader.word())
    stages: list[Stage] = []
    branches = []
    for _ in range(reader.word()):
        point, masked, dense, count = (reader.word() for _ in range(4))
        sources = []
        for _ in range(count):
            feature, number, limited = (reader.word() for _ in range(3))
            weight = reader.tensor()
            assert weight is not None
            sources.append((bool(feature), number, weight, bool(limited)))
        bias = reader.tensor()
        assert bias is not None
        stages.append(Stage(point, sources, bias, bool(masked), dense))
        branches.append(reader.branch())
    return MaskedNetworkWeights(blocks, points, mean, stages, branches)


_prepared: Lasting[tuple] = Lasting()


def masked_network(x: Tensor, packed: Packed, backend: str = "auto") -> Tensor:
    """The last stage's output (N, C, h, w), channels last.

    Args:
        x: features (N, C, H, W), before relu6.
        packed: weights.
        backend: of its own it has `native`; `auto` means it where it can compute.
    """
    return torch.ops.sparsemask.masked_network(
        x, packed.numbers, packed.flags, packed.layout, packed.thresholds, backend
    )


def _run(x: Tensor, numbers: Tensor, flags: Tensor, layout: list[int], thresholds: list[float], backend: str) -> Tensor:
    chosen = dispatch.able_or_reference(backend, x)

    def prepare() -> tuple:
        weights = unpack(Packed(numbers, flags, layout, thresholds))
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


def _fake(x, numbers, flags, layout, thresholds, backend):
    channels, halved = layout[:_HEADER]
    height, width = x.shape[2:]
    for _ in range(halved):
        height, width = (height + 1) // 2, (width + 1) // 2
    size = (x.shape[0], channels, height, width)
    return torch.empty(size, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _flops(x, numbers, flags, layout, thresholds, backend, *_, out_val=None, **__) -> int:
    """Of its parts, which are computed again: masks say what they cost."""
    counts: list[int] = []
    _by_operators(x, unpack(Packed(numbers, flags, layout, thresholds)), backend, counts)
    return sum(counts)


register("masked_network", _run, schema=SCHEMA, fake=_fake, flops=_flops)
