"""A decoder stage under masks: predicted from the end point at its size, carried to the grid of all it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spaces.specialized.masks import Channels, Locator, carry
from sparsemask.masks import DOWN, UP
from sparsemask.sparse import backends, scales  # noqa: F401  registers the operator
from sparsemask.sparse.derived import last


class StageMasks(nn.Module):
    """Masks of one stage: of its output grid, and of its channels, which all of its 1×1 convolutions share.

    A concatenation followed by a 1×1 convolution is one convolution, whatever sizes it reads; each part is masked on
    its own grid by the mask carried there, so that at a kept place nothing is missing.

    Args:
        channels: of the end point at the stage's size, which the mask is predicted from.
        depth: of the stage's output.
    """

    tau = 1.0

    def __init__(self, channels: int, depth: int):
        super().__init__()
        self.locate = Locator(channels)
        self.channels = Channels([depth])
        self.seen = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"seen": None}

    def see(self, end_point: Tensor) -> None:
        """Predict the masks of this forward pass: (mask, hard mask, dense shares, hard ones, size)."""
        mask, hard = self.locate(F.relu6(end_point), self.tau)
        soft, sure = self.channels(self.tau)
        self.seen = mask, hard, soft[0], sure[0], tuple(end_point.shape[-2:])

    def gate(self, y: Tensor) -> Tensor:
        """The stage's activated output (N, depth, H, W) where its masks let it be."""
        mask, dense = self.seen[0].to(y.dtype), self.seen[2].to(y.dtype).view(1, -1, 1, 1)
        return y * (dense + (1 - dense) * mask)

    def counted(self, reads: Sequence[tuple[int, tuple[int, int]]], hard: bool = False) -> list[tuple[int, Tensor]]:
        """(multiply-adds with everything kept, share executed) of each 1×1 in the last forward pass, for one picture.

        reads: (channels, size) of the features.
        """
        mask, dense = (self.seen[1], self.seen[3]) if hard else (self.seen[0], self.seen[2])
        everywhere = dense.to(torch.float32).mean()
        found = []
        for channels, size in reads:
            kept = carry(mask, size).to(torch.float32).mean()
            count = channels * len(dense) * size[0] * size[1]
            share = everywhere + (1 - everywhere) * kept
            found.append((count, torch.ones_like(share) if size == (1, 1) else share))  # a single place is not skipped
        return found

    def overhead(self) -> int:
        """Multiply-adds of the mask branch in the last forward pass, for one picture."""
        return self.locate.multiply_adds(*self.seen[-1])


class FoldedDecoder(nn.Module):
    """The decoder that skips: 1×1 convolutions at kept places, and one pass a stage from their sizes to its own.

    Stages hold their dense channels first, so that what dropped places have of them lies together.
    """

    backend = "auto"  # see :func:`sparsemask.sparse.set_backend`

    def __init__(self, depth: int):
        super().__init__()
        self.depth = depth
        self.weights, self.biases = nn.ParameterDict(), nn.ParameterDict()
        self.flags: dict[int, Tensor] = {}  # dense channels of a masked stage, first ones true
        self.counts: dict[int, int] = {}
        self.takers: dict[tuple[int, int], list[int]] = {}
        self.classify = nn.Parameter(torch.empty(0))

    def forward(self, points: Sequence[Tensor], masks: Mapping[int, Tensor]) -> Tensor:
        """The last stage's output, its channels in the folded order. masks: bool, of masked stages by number."""
        inputs: list[list[Tensor]] = [[] for _ in points]
        carried: list[tuple[int, Tensor]] = []

        def spread(kind: int, j: int, x: Tensor) -> None:
            for i in self.takers.get((kind, j), ()):
                weight = self.weights[f"{kind}_{j}_{i}"]
                if i not in masks or x.shape[-2:] == (1, 1):
                    inputs[i].append(F.conv2d(x, weight))
                    continue
                # Sizes are compared, not hashed: they are open where a network is exported.
                mask = next((one for k, one in carried if k == i and one.shape[-2:] == x.shape[-2:]), None)
                if mask is None:
                    mask = carry(masks[i], x.shape[-2:])
                    carried.append((i, mask))
                inputs[i].append(self._product(x, weight, mask, self.flags[i]))

        if (UP, 0) in self.takers:
            spread(UP, 0, F.relu6(points[0].mean((2, 3), keepdim=True)))
        output = None
        for i, point in enumerate(points):
            if (DOWN, i) in self.takers:
                spread(DOWN, i, F.relu6(point))
            if inputs[i]:
                dense = self.counts.get(i, self.depth)
                output = torch.ops.sparsemask.fuse_scales(
                    inputs[i], self.biases[str(i)], masks.get(i), dense, *point.shape[-2:],
                    backends.current(self.backend),
                )  # fmt: skip
                inputs[i] = []
                if (UP, i + 1) in self.takers:
                    spread(UP, i + 1, output)
        return output

    def _product(self, x: Tensor, weight: Tensor, mask: Tensor, dense: Tensor) -> Tensor:
        everything = torch.ones(x.shape[1], dtype=torch.bool, device=x.device)
        return torch.ops.sparsemask.conv(
            x, weight, None, mask, everything, dense, [1, 1], [0, 0], [1, 1], [0, 0], False, 1, "none",
            backends.current(self.backend),
        )  # fmt: skip


def folded_decoder(network, dense: Mapping[str, Tensor]) -> FoldedDecoder:
    """The decoder of a folded network (:meth:`PrunedNetwork.fold`). dense: channel masks of masked stages, by name."""
    depth = network.fc_conv.in_channels
    made = FoldedDecoder(depth)
    order = {
        i: torch.arange(depth, device=network.fc_conv.weight.device) for i in range(len(network.backbone.channels))
    }
    for name, flags in dense.items():
        i = int(name.split("_")[1])
        order[i] = torch.argsort(~flags, stable=True)
        made.flags[i], made.counts[i] = last(flags[order[i]]), int(flags.sum())
    biases: dict[int, Tensor] = {}
    for (kind, j), takers in network._takers.items():
        if not takers:
            continue
        made.takers[kind, j] = list(takers)
        merged = network.merged[f"{kind}_{j}"]
        parts = zip(takers, merged.weight.split(depth), merged.bias.split(depth), strict=True)
        for i, weight, bias in parts:
            weight = weight[order[i]]
            if kind == UP and j:
                weight = weight[:, order[j - 1]]
            made.weights[f"{kind}_{j}_{i}"] = nn.Parameter(last(weight.detach().contiguous()), False)
            biases[i] = biases.get(i, 0) + bias[order[i]]
    for i, bias in biases.items():
        made.biases[str(i)] = nn.Parameter(bias.detach(), False)
    final = max(i for takers in made.takers.values() for i in takers)
    made.classify = nn.Parameter(network.fc_conv.weight[:, order[final]].detach().contiguous(), False)
    return made
