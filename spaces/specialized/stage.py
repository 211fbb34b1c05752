"""Masks of decoder stages, predicted from the end point at the stage's size, and the folded decoder that skips."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sparsemask.masks import DOWN, UP
from sparsemask.ops import dispatch, multiscale_sum  # noqa: F401  registers the operator
from sparsemask.ops.masked_network import Stage
from sparsemask.ops.weight_cache import last
from sparsemask.spaces.sparse_conv.locator import Locator
from sparsemask.spaces.sparse_conv.masked_network import MaskModule
from sparsemask.spaces.specialized.masks import Channels, carry

if TYPE_CHECKING:
    from sparsemask.backends.native.decoder import Decoder


class StageMasks(MaskModule):
    """Data and channel mask of one stage, shared by all of its 1×1 convolutions.

    Each input is masked on its own grid by the mask carried there (:func:`carry`), so that kept locations are exact.

    Args:
        channels: of the end point at the stage's size, from which the data mask is predicted.
        depth: channels of the stage's output.
        has_data_mask: False: channels that are not dense are removed.
    """

    tau = 1.0

    def __init__(self, channels: int, depth: int, has_data_mask: bool = True):
        super().__init__()
        self.locate = Locator(channels) if has_data_mask else None
        self.channels = Channels([depth])
        self.known: Known | None = None
        self.unmasked = False
        self.register_buffer("whole", torch.ones(1, 1, 1, 1, dtype=torch.bool), persistent=False)
        self.seen = None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"seen": None}

    def channel_parameters(self) -> list[nn.Parameter]:
        """Of the stage's output, (1, depth, 2)."""
        return [self.channels.ch_mask]

    def branch(self) -> Locator | None:
        """The mask branch."""
        return self.locate

    def branch_end(self) -> tuple[Tensor, Tensor | None]:
        """Its last convolution."""
        assert self.locate is not None
        return self.locate[-1].weight, self.locate[-1].bias

    def fold(self) -> None:
        """Fix the masks' parameters for evaluation, irreversibly; a data mask that selects nothing is left out."""
        if self.locate is None:
            self.known = Known(*self.channels.some())
        else:
            self.unmasked = self.constant_mask() is True
            self.locate.fold()

    def see(self, end_point: Tensor) -> None:
        """Predict the masks of this forward pass; sets `seen`: (mask, hard mask, channel mask, hard one, size)."""
        size = tuple(end_point.shape[-2:])
        if self.locate is None:
            mask = hard = self.whole.expand(end_point.shape[0], 1, *size)
            soft, hard_channels = (self.known or self.channels).some(self.tau)
        elif self.unmasked:
            mask = hard = self.whole.expand(end_point.shape[0], 1, *size)
            (soft,), (hard_channels,) = self.channels(self.tau)
        else:
            mask, hard = self.locate(end_point, self.tau, apply_relu6=True)
            (soft,), (hard_channels,) = self.channels(self.tau)
        vars(self)["seen"] = mask, hard, soft, hard_channels, size  # nn.Module.__setattr__ is slow

    @property
    def mask(self) -> Tensor:
        """Data mask of the last forward pass, (N, 1, h, w)."""
        return self.seen[0]

    def gate(self, y: Tensor) -> Tensor:
        """Apply the masks to the stage's activated output (N, depth, H, W)."""
        dense = self.seen[2].to(y.dtype).view(1, -1, 1, 1)
        return y * (dense if self.locate is None else dense + (1 - dense) * self.seen[0].to(y.dtype))

    def present(self, hard: bool = False) -> Tensor | float:
        """Fraction of the output's channels that are present: below 1 only without a data mask."""
        return 1.0 if self.locate is not None else self.seen[3 if hard else 2].to(torch.float32).mean()

    def counted(
        self, reads: Sequence[tuple[int, tuple[int, int], Tensor | float]], hard: bool = False
    ) -> list[tuple[int, Tensor]]:
        """Cost of each 1×1 convolution in the last forward pass, for one image.

        Args:
            reads: (channels, size, fraction of channels present) of the features.
            hard: of hard masks instead of soft ones.

        Returns:
            (multiply-adds with everything kept, executed fraction).
        """
        mask, dense = (self.seen[1], self.seen[3]) if hard else (self.seen[0], self.seen[2])
        everywhere = dense.to(torch.float32).mean()
        counts = []
        for channels, size, present in reads:
            share = everywhere
            if self.locate is not None:
                kept = carry(mask, size).to(torch.float32).mean()
                share = everywhere + (1 - everywhere) * kept
                share = torch.ones_like(share) if size == (1, 1) else share  # a single location is not skipped
            counts.append((channels * len(dense) * size[0] * size[1], share * present))
        return counts

    def overhead(self) -> int:
        """Multiply-adds of the mask branch in the last forward pass, for one image."""
        return 0 if self.locate is None or self.unmasked else self.locate.multiply_adds(*self.seen[-1])


class Known(nn.Module):
    """Fixed channel masks, in place of :class:`Channels` after folding."""

    def __init__(self, soft: Tensor, hard: Tensor):
        super().__init__()
        self.register_buffer("soft", soft.clone())
        self.register_buffer("hard", hard.clone())

    def some(self, tau: float = 1.0) -> tuple[Tensor, Tensor]:
        """(mask, hard mask); as :meth:`Channels.some`."""
        return self.soft, self.hard


class FoldedDecoder(nn.Module):
    """The decoder that skips: 1×1 convolutions at kept locations, and one pass a stage from their sizes to its own.

    Stages hold their dense channels first, contiguously.

    Args:
        depth: channels of a stage.
    """

    backend = "auto"  # see :func:`sparsemask.sparse.set_backend`

    def __init__(self, depth: int):
        super().__init__()
        self.depth = depth
        self.chained = True  # False: each stage is an operator that files can hold
        self.weights, self.biases = nn.ParameterDict(), nn.ParameterDict()
        self.counts: dict[int, int] = {}  # dense channels of a stage
        self.takers: dict[tuple[int, int], list[int]] = {}
        self.classify = nn.Parameter(torch.empty(0))
        self._whole: Decoder | bool | None = None  # holds addresses: not copied, rebuilt when needed

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_whole": None}

    def forward(self, points: Sequence[Tensor | None], masks: Mapping[int, Tensor]) -> Tensor:
        """Compute the last stage's output, channels in the folded order.

        Args:
            points: end points, deepest first; None for those that are not built.
            masks: data masks, bool (N, 1, h, w), of masked stages by number.
        """
        native = dispatch.find("native")
        built = [point for point in points if point is not None]
        begin = len(points) - len(built)  # the native decoder numbers what is built
        if (
            self.chained
            and self._whole is not False
            and not torch.compiler.is_exporting()
            and dispatch.current(self.backend) in ("auto", "native")
            and not native.why_not(built[0].device, built[0].dtype)
            and built[0].numel()
        ):
            if self._whole is None:
                self._whole = self._described(begin, len(points), masks)
            if self._whole:
                mean = [built[0].mean((2, 3), keepdim=True)] if (UP, 0) in self.takers else []
                return self._whole([*built, *mean], {i - begin: mask for i, mask in masks.items()})
        return self._staged(points, masks)

    def _described(self, begin: int, count: int, masks: Mapping[int, Tensor]):
        """All stages as one native decoder, False if it does not support them."""
        from sparsemask.backends.native.decoder import Decoder

        decoder = Decoder(self.stages(begin, count, masks))
        return decoder if decoder.fits else False

    def stages(self, begin: int, count: int, masked: Container[int]) -> list[Stage]:
        """All stages; the global mean is the last feature.

        Args:
            begin: end points, deepest first, that are not built.
            count: of all end points.
            masked: numbers of the stages that have a data mask.
        """
        made: list[Stage] = []
        stage_index: dict[int, int] = {}
        for i in range(begin, count):
            sources = []
            if (UP, 0) in self.takers and i in self.takers[UP, 0]:
                sources.append((True, count - begin, self.weights[f"{UP}_0_{i}"], True))
            for (kind, j), takers in self.takers.items():
                if i not in takers or (kind, j) == (UP, 0):
                    continue
                feature = kind == DOWN
                sources.append(
                    (feature, j - begin if feature else stage_index[j - 1], self.weights[f"{kind}_{j}_{i}"], feature)
                )
            if sources:
                stage_index[i] = len(made)
                made.append(Stage(i - begin, sources, self.biases[str(i)], i in masked, self.counts.get(i, self.depth)))
        return made

    def _staged(self, points: Sequence[Tensor | None], masks: Mapping[int, Tensor]) -> Tensor:
        """Stage by stage, each an operator."""
        inputs: list[list[tuple]] = [[] for _ in points]

        def spread(kind: int, j: int, x: Tensor, cut: bool) -> None:
            for i in self.takers.get((kind, j), ()):
                inputs[i].append((x, self.weights[f"{kind}_{j}_{i}"], cut))

        if (UP, 0) in self.takers:
            spread(UP, 0, points[0].mean((2, 3), keepdim=True), True)
        output = None
        for i, point in enumerate(points):
            if point is None:
                continue
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
    """Build the skipping decoder of a folded network (:meth:`PrunedNetwork.fold`).

    Args:
        network: folded.
        dense: channel masks, bool (depth,), of stages with a data mask, by number.
        present: those of stages without a data mask, whose other channels are removed.
    """
    depth = network.fc_conv.in_channels
    decoder = FoldedDecoder(depth)
    order = {
        i: torch.arange(depth, device=network.fc_conv.weight.device) for i in range(len(network.backbone.channels))
    }
    for i, flags in (present or {}).items():
        order[i] = flags.nonzero().flatten()
        decoder.counts[i] = len(order[i])
    for i, flags in dense.items():
        order[i] = torch.argsort(~flags, stable=True)
        decoder.counts[i] = int(flags.sum())
    biases: dict[int, Tensor] = {}
    for (kind, j), takers in network._takers.items():
        if not takers:
            continue
        decoder.takers[kind, j] = list(takers)
        merged = network.merged[f"{kind}_{j}"]
        parts = zip(takers, merged.weight.split(depth), merged.bias.split(depth), strict=True)
        for i, weight, bias in parts:
            weight = weight[order[i]]
            if kind == UP and j:
                weight = weight[:, order[j - 1]]
            decoder.weights[f"{kind}_{j}_{i}"] = nn.Parameter(last(weight.detach().contiguous()), False)
            biases[i] = biases.get(i, 0) + bias[order[i]]
    for i, bias in biases.items():
        decoder.biases[str(i)] = nn.Parameter(bias.detach(), False)
        last(decoder.biases[str(i)])
    final = max(i for takers in decoder.takers.values() for i in takers)
    decoder.classify = nn.Parameter(network.fc_conv.weight[:, order[final]].detach().contiguous(), False)
    return decoder
