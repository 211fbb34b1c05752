"""A decoder stage under masks: predicted from the end point at its size, carried to the grid of all it reads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparsemask.masks import DOWN, UP
from sparsemask.ops import dispatch, multiscale_sum  # noqa: F401  registers the operator
from sparsemask.ops.weight_cache import last
from sparsemask.spaces.specialized.masks import Channels, Locator, carry

if TYPE_CHECKING:
    from sparsemask.backends.native.decoder import Decoder


class StageMasks(nn.Module):
    """Masks of one stage: of its output grid, and of its channels, which all of its 1×1 convolutions share.

    A concatenation followed by a 1×1 convolution is one convolution, whatever sizes it reads; each part is masked on
    its own grid by the mask carried there, so that at a kept place nothing is missing.

    Args:
        channels: of the end point at the stage's size, which the mask is predicted from.
        depth: of the stage's output.
        places: whether there is a data mask; without one, channels that are not dense are nowhere, and removed.
    """

    tau = 1.0

    def __init__(self, channels: int, depth: int, places: bool = True):
        super().__init__()
        self.locate = Locator(channels) if places else None
        self.channels = Channels([depth])
        self.known: Known | None = None
        self.register_buffer("whole", torch.ones(1, 1, 1, 1, dtype=torch.bool), persistent=False)
        self.seen = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"seen": None}

    def fold(self) -> None:
        """Change no more: for evaluation only."""
        if self.locate is None:
            self.known = Known(*self.channels.some())
        else:
            self.locate.fold()

    def see(self, end_point: Tensor) -> None:
        """Predict the masks of this forward pass: (mask, hard mask, dense shares, hard ones, size)."""
        size = tuple(end_point.shape[-2:])
        if self.locate is None:
            mask = hard = self.whole.expand(end_point.shape[0], 1, *size)
            soft, sure = (self.known or self.channels).some(self.tau)
        else:
            mask, hard = self.locate(end_point, self.tau, cut=True)
            (soft,), (sure,) = self.channels(self.tau)
        vars(self)["seen"] = mask, hard, soft, sure, size  # a module looks long at what is set on it

    @property
    def mask(self) -> Tensor:
        """Where it computed in the last forward pass, (N, 1, h, w)."""
        return self.seen[0]

    def gate(self, y: Tensor) -> Tensor:
        """The stage's activated output (N, depth, H, W) where its masks let it be."""
        dense = self.seen[2].to(y.dtype).view(1, -1, 1, 1)
        return y * (dense if self.locate is None else dense + (1 - dense) * self.seen[0].to(y.dtype))

    def present(self, hard: bool = False) -> Tensor | float:
        """Share of the output's channels that others read."""
        return 1.0 if self.locate is not None else self.seen[3 if hard else 2].to(torch.float32).mean()

    def counted(
        self, reads: Sequence[tuple[int, tuple[int, int], Tensor | float]], hard: bool = False
    ) -> list[tuple[int, Tensor]]:
        """(multiply-adds with everything kept, share executed) of each 1×1 in the last forward pass, for one picture.

        reads: (channels, size, share of the channels that there are) of the features.
        """
        mask, dense = (self.seen[1], self.seen[3]) if hard else (self.seen[0], self.seen[2])
        everywhere = dense.to(torch.float32).mean()
        found = []
        for channels, size, present in reads:
            share = everywhere
            if self.locate is not None:
                kept = carry(mask, size).to(torch.float32).mean()
                share = everywhere + (1 - everywhere) * kept
                share = torch.ones_like(share) if size == (1, 1) else share  # a single place is not skipped
            found.append((channels * len(dense) * size[0] * size[1], share * present))
        return found

    def overhead(self) -> int:
        """Multiply-adds of the mask branch in the last forward pass, for one picture."""
        return 0 if self.locate is None else self.locate.multiply_adds(*self.seen[-1])


class Known(nn.Module):
    """Channel masks that nothing has to be asked of."""

    def __init__(self, soft: Tensor, hard: Tensor):
        super().__init__()
        self.register_buffer("soft", soft.clone())
        self.register_buffer("hard", hard.clone())

    def some(self, tau: float = 1.0) -> tuple[Tensor, Tensor]:
        """(dense shares, hard ones), the same."""
        return self.soft, self.hard


class FoldedDecoder(nn.Module):
    """The decoder that skips: 1×1 convolutions at kept places, and one pass a stage from their sizes to its own.

    Stages hold their dense channels first, so that what dropped places have of them lies together.
    """

    backend = "auto"  # see :func:`sparsemask.sparse.set_backend`

    def __init__(self, depth: int):
        super().__init__()
        self.depth = depth
        self.weights, self.biases = nn.ParameterDict(), nn.ParameterDict()
        self.counts: dict[int, int] = {}  # dense channels of a stage
        self.takers: dict[tuple[int, int], list[int]] = {}
        self.classify = nn.Parameter(torch.empty(0))
        self._whole: Decoder | bool | None = None  # of addresses: made again where it is copied

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_whole": None}

    def forward(self, points: Sequence[Tensor], masks: Mapping[int, Tensor]) -> Tensor:
        """The last stage's output, its channels in the folded order. masks: bool, of masked stages by number."""
        native = dispatch.find("native")
        if (
            self._whole is not False
            and not torch.compiler.is_exporting()
            and dispatch.current(self.backend) in ("auto", "native")
            and not native.why_not(points[0].device, points[0].dtype)
            and points[0].numel()
        ):
            if self._whole is None:
                self._whole = self._described(len(points), masks)
            if self._whole:
                mean = [points[0].mean((2, 3), keepdim=True)] if (UP, 0) in self.takers else []
                return self._whole([*points, *mean], masks)
        return self._staged(points, masks)

    def _described(self, count: int, masks: Mapping[int, Tensor]):
        """All stages as one, False where they do not fit. The first feature's mean is one more feature, the last."""
        from sparsemask.backends.native.decoder import Decoder, Stage

        found, made = [], {}
        for i in range(count):
            sources = []
            if (UP, 0) in self.takers and i in self.takers[UP, 0]:
                sources.append((True, count, self.weights[f"{UP}_0_{i}"], True))
            for (kind, j), takers in self.takers.items():
                if i not in takers or (kind, j) == (UP, 0):
                    continue
                feature = kind == DOWN
                sources.append((feature, j if feature else made[j - 1], self.weights[f"{kind}_{j}_{i}"], feature))
            if sources:
                made[i] = len(found)
                found.append(Stage(i, sources, self.biases[str(i)], i in masks, self.counts.get(i, self.depth)))
        decoder = Decoder(found)
        return decoder if decoder.fits else False

    def _staged(self, points: Sequence[Tensor], masks: Mapping[int, Tensor]) -> Tensor:
        """Stage by stage, each an operator."""
        inputs: list[list[tuple]] = [[] for _ in points]

        def spread(kind: int, j: int, x: Tensor, cut: bool) -> None:
            for i in self.takers.get((kind, j), ()):
                inputs[i].append((x, self.weights[f"{kind}_{j}_{i}"], cut))

        if (UP, 0) in self.takers:
            spread(UP, 0, points[0].mean((2, 3), keepdim=True), True)
        output = None
        for i, point in enumerate(points):
            spread(DOWN, i, point, True)
            if inputs[i]:
                xs, weights, cut = map(list, zip(*inputs[i], strict=True))
                dense = self.counts.get(i, self.depth)
                output = torch.ops.sparsemask.fuse_scales(
                    xs, weights, cut, self.biases[str(i)], masks.get(i), dense, *point.shape[-2:],
                    dispatch.current(self.backend),
                )  # fmt: skip
                inputs[i] = []
                spread(UP, i + 1, output, False)
        return output


def folded_decoder(network, dense: Mapping[int, Tensor], present: Mapping[int, Tensor] | None = None) -> FoldedDecoder:
    """The decoder of a folded network (:meth:`PrunedNetwork.fold`).

    Args:
        dense: channel masks of stages with a data mask, by number.
        present: those of stages without one: other channels are removed.
    """
    depth = network.fc_conv.in_channels
    made = FoldedDecoder(depth)
    order = {
        i: torch.arange(depth, device=network.fc_conv.weight.device) for i in range(len(network.backbone.channels))
    }
    for i, flags in (present or {}).items():
        order[i] = flags.nonzero().flatten()
        made.counts[i] = len(order[i])
    for i, flags in dense.items():
        order[i] = torch.argsort(~flags, stable=True)
        made.counts[i] = int(flags.sum())
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
        last(made.biases[str(i)])
    final = max(i for takers in made.takers.values() for i in takers)
    made.classify = nn.Parameter(network.fc_conv.weight[:, order[final]].detach().contiguous(), False)
    return made
