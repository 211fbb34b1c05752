"""Any network of convolutions with masks over locations: trained with soft masks, skipping under hard ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparsemask import costs
from sparsemask.errors import UseError
from sparsemask.ops import dispatch
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork, begin_smoothly
from sparsemask.spaces.sparse_conv.masking import mean_kept
from sparsemask.spaces.sparsified.regions import HasCore, find_regions, traced
from sparsemask.sparse import ChannelMask, DataMask, gumbel_mask, kept_fraction
from sparsemask.timing import evaluating

_BEGIN = 2.0  # how much more likely than not a new mask branch keeps, in logits
_RATE = 1e-2  # of the fit
_SPARSE = 2.0  # likewise that a layer follows its region's mask, rather than being computed everywhere


class RegionMasks(ChannelMask):
    """The masks of a region: which locations it is computed at, and which of its layers everywhere all the same.

    Args:
        channels: of the region's input.
        layers: its convolutions.
    """

    def __init__(self, channels: int, layers: int):
        super().__init__(1, layers)
        self.spa_mask = DataMask(channels)
        last = cast(nn.ConvTranspose2d, self.spa_mask[-1])
        begin_smoothly(last)
        with torch.no_grad():
            self.ch_mask.copy_(torch.tensor([0.0, _SPARSE]))
            cast(Tensor, last.bias).copy_(torch.tensor([0.0, _BEGIN]))

    def draw(self, x: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor]:
        """The masks for features (N, C, H, W).

        Returns:
            The data mask (N, 1, H, W) and the dense layers (L,), soft or bool; and the kept fractions (L,) of the hard
            ones.
        """
        dense = self.channels(tau)[:, 0]
        hard_dense = dense if dense.dtype == torch.bool else self.ch_mask[0, 0, :, 0] >= self.ch_mask[0, 0, :, 1]
        if not self.training or self.spa_mask.mask_mode != "soft":
            mask = self.spa_mask(x, tau)
            return mask, dense, kept_fraction(mask, hard_dense[:, None])
        logits = self.spa_mask.logits(x)
        drop, keep = logits.detach().split(1, 1)
        hard = torch.sigmoid(keep - drop) > self.spa_mask.threshold
        return gumbel_mask(logits, tau)[:, 1:], dense, kept_fraction(hard, hard_dense[:, None])


class SparsifiedNetwork(MaskedNetwork):
    """A network whose regions are computed where their masks keep, and pass their input on elsewhere.

    In evaluation masks are hard and convolutions skip (the operator `sparsemask::conv`); in training they are soft
    (:func:`sparsemask.sparse.set_mask_mode`). After a forward pass `kept`, `hard_kept` and `masks` describe it.

    Args:
        network: any network of convolutions that ``torch.fx`` can trace; it is used, not copied, and keeps its weights
            under the prefix ``network.``.
        example: an input (N, C, H, W), by whose size layers are weighed.
        config: what builds the network again, for files; empty where nothing does.

    Raises:
        UseError: a network that cannot be traced, or has no region that pays off.
    """

    backend = "auto"  # see :func:`sparsemask.sparse.set_backend`

    def __init__(self, network: nn.Module, example: Tensor, config: Mapping[str, Any] | None = None):
        super().__init__()
        self.network, self.config = network, dict(config or {})
        self.graph = traced(network, example)
        self.regions = find_regions(network, self.graph)
        if not self.regions:
            raise UseError(
                f"{type(network).__name__} has no residual block and no chain of convolutions of one size whose "
                "multiply-adds are worth a mask"
            )
        for node in self.graph.nodes:  # shapes were of the example
            node.meta = {}
        self.region_masks = nn.ModuleList(RegionMasks(r.channels, len(r.convs)) for r in self.regions).to(
            example.device, example.dtype
        )
        total = costs.multiply_adds(network, [example])
        self.kept_weights = [torch.tensor(region.multiply_adds) / total for region in self.regions]
        inside = sum(sum(region.multiply_adds) for region in self.regions)
        self.kept_base = 1 - inside / total + sum(region.branch for region in self.regions) / total
        self.kept, self.hard_kept, self.masks = [], [], []

    def forward(self, x: Tensor) -> Tensor:
        """As the network's own."""
        if isinstance(self.network, HasCore):
            return self.network.enlarge(x, self.run)
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        """Execute the graph under the masks."""
        execution = _Execution(self)
        output = cast(Tensor, execution.run(x))
        self.kept, self.hard_kept, self.masks = execution.kept, execution.hard_kept, execution.masks
        return output

    @property
    def mask_names(self) -> list[str]:  # type: ignore[override]
        """The regions' first convolutions."""
        targets = {node.name: str(node.target) for node in self.graph.nodes}
        return [targets[region.convs[0]] for region in self.regions]


class _Execution(fx.Interpreter):
    """One run of a network's graph, in which convolutions of regions are masked."""

    def __init__(self, owner: SparsifiedNetwork):
        super().__init__(owner.network, graph=owner.graph)
        self.owner, self.training, self.tau = owner, owner.training, owner.tau
        self.entered = {region.entry: number for number, region in enumerate(owner.regions)}
        self.left = {region.exit: number for number, region in enumerate(owner.regions)}
        self.layers = {
            name: (number, layer)
            for number, region in enumerate(owner.regions)
            for layer, name in enumerate(region.convs)
        }
        self.skipped: set[str] = set()
        self.inputs: dict[int, Tensor] = {}
        self.drawn: dict[int, tuple[Tensor, Tensor]] = {}
        self.kept: list[Tensor] = []
        self.hard_kept: list[Tensor] = []
        self.masks: list[Tensor] = []

    def run_node(self, n: fx.Node) -> Any:
        """Execute a node; behind an entry draw masks, before an exit mix."""
        if n.name in self.layers:
            result = self.convolve(n, *self.layers[n.name])
        elif n.name in self.skipped:
            result = cast(Tensor, self.map_nodes_to_values(n.args[0], n))  # its convolution has applied it
        else:
            result = super().run_node(n)
        if n.name in self.left:
            result = self.mixed(self.left[n.name], result)
        if n.name in self.entered:
            self.draw(self.entered[n.name], result)
        return result

    def draw(self, number: int, x: Tensor) -> None:
        masks = self.owner.region_masks[number]
        assert isinstance(masks, RegionMasks)
        mask, dense, hard = masks.draw(x, self.tau)
        self.inputs[number], self.drawn[number] = x, (mask, dense)
        self.kept.append(kept_fraction(mask, dense[:, None]))
        self.hard_kept.append(hard)
        self.masks.append(mask)

    def convolve(self, n: fx.Node, number: int, layer: int) -> Tensor:
        """A layer's output, zero where its region's mask drops it."""
        mask, dense = self.drawn[number]
        conv = cast(nn.Conv2d, self.fetch_attr(str(n.target)))
        x = cast(Tensor, self.map_nodes_to_values(n.args[0], n))
        if self.training or mask.is_floating_point():
            gate, mine = mask.to(x.dtype), dense[layer].to(x.dtype)
            return cast(Tensor, conv(x)) * (mine + (1 - mine) * gate)
        activation = "none"
        fused = self.owner.regions[number].fused.get(n.name)
        if fused is not None:
            self.skipped.add(fused[0])
            activation = fused[1]
        flags = torch.ones(max(conv.in_channels, conv.out_channels), dtype=torch.bool, device=x.device)
        output: Tensor = torch.ops.sparsemask.conv(
            x, conv.weight, conv.bias, mask, flags[: conv.in_channels], flags[: conv.out_channels] & dense[layer],
            conv.stride, conv.padding, conv.dilation, [0, 0], False, conv.groups, activation,
            dispatch.current(self.owner.backend),
        )  # fmt: skip
        return output

    def mixed(self, number: int, y: Tensor) -> Tensor:
        """The region's output where it is kept, its input elsewhere."""
        mask, x = self.drawn[number][0], self.inputs.pop(number)
        return torch.lerp(x, y, mask) if mask.is_floating_point() else torch.where(mask, y, x)


def sparsify(
    network: nn.Module,
    example: Tensor,
    keep: float | None = 0.5,
    *,
    steps: int = 60,
    config: Mapping[str, Any] | None = None,
) -> SparsifiedNetwork:
    """Give any network of convolutions masks over locations, so that it computes where it must.

    Residual blocks and chains of convolutions of one size get a mask branch each where that pays off. The branches are
    fitted, without labels, to where on the example a block changes its input most, and shifted so that `keep` of the
    multiply-adds is executed there. The weights stay as they are; training them with their masks
    (``retrain/specialize.py``, or any loop: in training masks are soft) wins back what that costs.

    Args:
        network: any network that ``torch.fx`` can trace, with an input of images; used, not copied.
        example: inputs (N, C, H, W) like those to come, a few real ones rather than noise.
        keep: share of the multiply-adds on the example, mask branches included; None: masks keep (nearly) everything,
            to be trained.
        steps: of the fit.
        config: what builds the network again, for files.

    Returns:
        The network in evaluation mode, on the device of the network.

    Raises:
        UseError: a network that cannot be traced or has nothing to mask, or a share that it cannot have.

    Example:
        ``fast = sparsemask.sparsify(net, pictures, keep=0.5)``
    """
    training = network.training
    network.eval()
    sparse = SparsifiedNetwork(network, example, config).eval()
    if keep is None:
        network.train(training)
        return sparse
    begin(sparse, example, keep, steps)
    return sparse


def begin(network: SparsifiedNetwork, example: Tensor, keep: float, steps: int = 60) -> None:
    """Start mask branches where a budget is met and the regions that change their inputs most are kept.

    Args:
        network: its branches are changed in place.
        example: inputs like those to come.
        keep: share of all multiply-adds that is executed on the example, branches included.
        steps: of the fit.

    Raises:
        UseError: a share that the network cannot have.
    """
    least = float(network.kept_base)
    if not least < keep <= 1:
        raise UseError(
            f"keep {keep:g}: between {least:.2f}, what has no mask and the mask branches, and 1 (of all multiply-adds)"
        )
    with evaluating(network), dispatch.repeatable():
        fit_branches(network, example, (keep - least) / (1 - least), steps)
        meet(network, example, keep)


def fit_branches(network: SparsifiedNetwork, example: Tensor, share: float, steps: int = 60) -> None:
    """Fit mask branches to where regions change their inputs most, on an example.

    Args:
        network: its branches are changed in place.
        example: inputs.
        share: of the locations that count as changed.
        steps: of Adam, on each branch by itself.
    """
    for masks, (x, y) in zip(network.region_masks, _changes(network, example), strict=True):
        assert isinstance(masks, RegionMasks)
        change = (y - x).abs().mean(1)
        rank = min(change.numel(), max(1, round((1 - share) * change.numel())))
        wanted = (change > change.flatten().kthvalue(rank).values).to(x.dtype)
        scale = x.abs().mean().clamp_min(1e-12)
        parameters = list(masks.spa_mask.parameters())
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            first = cast(nn.Conv2d, masks.spa_mask[0])
            with torch.no_grad():
                first.weight.div_(scale)  # features of any size
            rest = [parameter for parameter in parameters if parameter is not first.weight]
            groups = [{"params": [first.weight], "lr": _RATE / float(scale)}, {"params": rest, "lr": _RATE}]
            optimizer = torch.optim.Adam(groups)
            for _ in range(steps):
                optimizer.zero_grad()
                logits = masks.spa_mask.logits(x)
                F.binary_cross_entropy_with_logits(logits[:, 1] - logits[:, 0], wanted).backward()
                optimizer.step()
        for parameter in parameters:
            parameter.grad = None


@torch.no_grad()
def meet(network: SparsifiedNetwork, example: Tensor, keep: float) -> float:
    """Shift the logits of all mask branches by one number so that `keep` of the multiply-adds is executed.

    Args:
        network: in evaluation mode; changed in place.
        example: inputs.
        keep: share of all multiply-adds.

    Returns:
        The share that is reached on the example.
    """
    biases = [masks.spa_mask[-1].bias for masks in network.region_masks]  # type: ignore[union-attr,index]
    before = [bias.clone() for bias in biases]

    def kept(shift: float) -> float:
        for bias, start in zip(biases, before, strict=True):
            bias.copy_(start + torch.tensor([0.0, shift]).to(start))
        network(example)
        return float(mean_kept(network))

    low, high = -50.0, 50.0
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if kept(middle) > keep else (middle, high)
    return kept(low)


@torch.no_grad()
def _changes(network: SparsifiedNetwork, example: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(input, output) of every region when everything is computed."""
    seen: dict[str, Tensor] = {}

    class Watching(fx.Interpreter):
        """Keeps what regions read and give."""

        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n.name in wanted:
                seen[n.name] = result.clone()
            return result

    wanted = {name for region in network.regions for name in (region.entry, region.exit)}
    run: Callable[[Tensor], Tensor] = Watching(network.network, graph=network.graph).run
    network.network.enlarge(example, run) if isinstance(network.network, HasCore) else run(example)
    return [(seen[region.entry], seen[region.exit]) for region in network.regions]
