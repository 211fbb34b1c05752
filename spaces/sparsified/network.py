"""Any network of convolutions with masks over locations: trained with soft masks, skipping under hard ones."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from enum import Enum
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from sparsemask import costs
from sparsemask.errors import UseError
from sparsemask.ops import activation as act
from sparsemask.ops import (
    dispatch,
    kept_conv,  # noqa: F401 - registers the operator
    merge_kept,  # noqa: F401
)
from sparsemask.ops.concat_conv import joined_conv, keeps_size
from sparsemask.ops.kept_conv import kept_features, kept_places
from sparsemask.ops.layout import to_channels_last
from sparsemask.spaces.group_sparsity.shrinking.targets import Target
from sparsemask.spaces.sparse_conv.budget_calibration import meet_budget
from sparsemask.spaces.sparse_conv.locator import Locator
from sparsemask.spaces.sparse_conv.masked_network import SURE, MaskedNetwork, MaskModule, begin_smoothly
from sparsemask.spaces.sparse_conv.masking import mean_kept
from sparsemask.spaces.sparse_conv.planning import opened_copy
from sparsemask.spaces.sparsified.regions import POOLED, HasCore, find_regions, traced
from sparsemask.sparse import ChannelMask, DataMask, kept_fraction
from sparsemask.timing import evaluating

_BEGIN = 2.0  # how much more likely than not a new mask branch keeps, in logits
_RATE = 1e-2  # of the fit
_ROUNDS = 3  # of fitting bypasses to what is dropped, and dropping what they fit
_RIDGE = 1e-6  # of that fit, towards the identity, relative to the features' mean square
_SPAN = 50.0  # largest shift of mask logits
_SPARSE = 2.0  # likewise that a layer follows its region's mask, rather than being computed everywhere


BRANCH_RADIUS = 6
"""Pixels around a location that its mask depends on: 5 of the branch, and one as it works on every other pixel."""


MaskBranch = DataMask | Locator
"""What predicts a region's data mask."""


class RegionMasks(MaskModule, ChannelMask):
    """The masks of a region: which locations it is computed at, and which of its layers everywhere all the same.

    Args:
        channels: of the region's input.
        layers: its convolutions.
        branch: of :data:`sparsemask.spaces.sparsified.regions.BRANCHES`.
    """

    def __init__(self, channels: int, layers: int, branch: str = POOLED):
        super().__init__(1, layers)
        self.spa_mask: MaskBranch = Locator(channels) if branch == POOLED else DataMask(channels)
        last = cast(nn.ConvTranspose2d, self.spa_mask[-1])
        begin_smoothly(last)
        with torch.no_grad():
            self.ch_mask.copy_(torch.tensor([0.0, _SPARSE]))
            cast(Tensor, last.bias).copy_(torch.tensor([0.0, _BEGIN]))

    def channel_parameters(self) -> list[nn.Parameter]:
        """Of the layers, (1, 1, L, 2)."""
        return [self.ch_mask]

    def branch(self) -> MaskBranch:
        """The mask branch."""
        return self.spa_mask

    def branch_end(self) -> tuple[Tensor, Tensor | None]:
        """The transposed convolution."""
        last = cast(nn.ConvTranspose2d, self.spa_mask[-1])
        return last.weight, last.bias

    def constant_mask(self, selects: bool = True) -> bool | None:
        """See :class:`MaskModule`; the data mask also selects what the bypass stands for."""
        return super().constant_mask(selects)

    @torch.no_grad()
    def open_masks(self) -> None:
        """Keep everything, whatever the input: the region is computed without masks and bypass."""
        super().open_masks()
        weight, bias = self.branch_end()
        weight.zero_()
        cast(Tensor, bias).copy_(torch.tensor([-SURE, SURE]))

    @property
    def opened(self) -> bool:
        """Whether the data mask keeps everything, whatever the input, also while other masks are learnt."""
        weight, bias = self.branch_end()
        return not bool(weight.any()) and bool(cast(Tensor, bias)[1] > cast(Tensor, bias)[0])

    def draw(self, x: Tensor, tau: float, by_operator: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """The masks for features (N, C, H, W).

        Args:
            x: the features.
            tau: temperature of what is learnt.
            by_operator: see :meth:`hard_mask`.

        Returns:
            The data mask (N, 1, H, W) and the dense layers (L,), bool, or where masks are learnt 0 and 1 with the
            gradient of a sigmoid; and the kept fractions (L,).
        """
        if not self.training or self.spa_mask.mask_mode != "soft":
            mask, dense = self.hard_mask(x, by_operator), self.channels(tau)[:, 0]
            return mask, dense, kept_fraction(mask, dense[:, None])
        logits = self.spa_mask.logits(x)
        mask = _straight_through(logits[:, 1:] - logits[:, :1], tau, self.spa_mask.threshold)
        dense = _straight_through(self.ch_mask[0, 0, :, 0] - self.ch_mask[0, 0, :, 1], tau)
        return mask, dense, kept_fraction(mask.detach() > 0, dense.detach()[:, None] > 0)

    def hard_mask(self, x: Tensor, by_operator: bool = False) -> Tensor:
        """The data mask where masks are hard.

        Args:
            x: features (N, C, H, W).
            by_operator: compute a branch that has one by a single operator, without gradients.

        Returns:
            bool (N, 1, H, W).
        """
        if isinstance(self.spa_mask, DataMask):
            return cast(Tensor, self.spa_mask(x))
        if by_operator:
            return self.spa_mask.predicted(x)
        return cast(Tensor, self.spa_mask(x)[1])


def _straight_through(margin: Tensor, tau: float, threshold: float = 0.5) -> Tensor:
    """1 where a margin's sigmoid is above a threshold, else 0, with the gradient of sigmoid(margin / tau).

    Without noise: the function that is trained is the one that is evaluated (Bengio et al., 2013, arXiv 1308.3432).
    With Gumbel noise a network that begins as a good one is first spoilt by it.
    """
    hard = (torch.sigmoid(margin.detach()) > threshold) if threshold != 0.5 else margin.detach() > 0
    soft = torch.sigmoid(margin / tau)
    return hard.to(soft.dtype) + soft - soft.detach()


class SparsifiedNetwork(MaskedNetwork):
    """A network whose regions are computed where their masks keep, and elsewhere a 1×1 convolution in their place.

    These *bypasses* begin as the identity and are fitted by :func:`begin`. In evaluation masked convolutions skip (the
    operator `sparsemask::conv`); while masks are learnt they multiply, and are as hard
    (:func:`sparsemask.sparse.set_mask_mode`). After a forward pass `kept`, `hard_kept` and `masks` describe it.

    Args:
        network: any network of convolutions that ``torch.fx`` can trace; it is used, not copied, and keeps its weights
            under the prefix ``network.``.
        example: an input (N, C, H, W), by whose size layers are weighed.
        config: what builds the network again, for files; empty where nothing does.
        branch: of the masks, of :data:`sparsemask.spaces.sparsified.regions.BRANCHES`.

    Raises:
        UseError: a network that cannot be traced, or has no region that pays off.
    """

    backend = "auto"  # see :func:`sparsemask.sparse.set_backend`
    in_one_call = True
    report = ""
    """How :func:`sparsify` met a budget in milliseconds, as lines."""
    exported_in_rows: Collection[int] = ()
    """Numbers of the regions that exported programs compute at kept locations alone."""
    multiplies = False
    """Whether masks multiply in evaluation, too, instead of skipping: for programs without the sparse operator."""

    def __init__(
        self, network: nn.Module, example: Tensor, config: Mapping[str, Any] | None = None, branch: str = POOLED
    ):
        super().__init__()
        self.network, self.config = network, dict(config or {})
        self.graph = traced(network, example)
        self.regions = find_regions(network, self.graph, branch)
        if not self.regions:
            raise UseError(
                f"{type(network).__name__} has no residual block and no chain of convolutions of one size whose "
                "multiply-adds are worth a mask"
            )
        self.modules_of = {node.name: _modules_of(node) for node in self.graph.nodes}
        self.targets = {node.name: str(node.target) for node in self.graph.nodes}
        for node in self.graph.nodes:  # shapes were of the example
            node.meta = {}
        self.region_masks = nn.ModuleList(RegionMasks(r.channels, len(r.convs), branch) for r in self.regions).to(
            example.device, example.dtype
        )
        self.bypasses = nn.ModuleList(_identity(r.channels, r.bypass_groups) for r in self.regions).to(
            example.device, example.dtype
        )
        total = costs.multiply_adds(network, [example])
        self.kept_weights = [torch.tensor(region.multiply_adds) / total for region in self.regions]
        inside = sum(sum(region.multiply_adds) for region in self.regions)
        self._outside = 1 - inside / total
        self._overheads = [(region.branch + region.bypass) / total for region in self.regions]
        self.kept, self.hard_kept, self.masks = [], [], []
        self.read: dict[int, Tensor] = {}  # in training, what regions read in the last forward pass, by their number

    def forward(self, x: Tensor) -> Tensor:
        """As the network's own."""
        return self.enlarged(x, self.run)

    def enlarged(self, x: Tensor, run: Callable[[Tensor], Any]) -> Tensor:
        """What the network makes of its graph's output."""
        if not self.training and x.ndim == 4:  # the kernels' rows are a view of it
            x = to_channels_last(x)
        return self.network.enlarge(x, run) if isinstance(self.network, HasCore) else cast(Tensor, run(x))

    def run(self, x: Tensor) -> Tensor:
        """Execute the graph under the masks."""
        read: dict[int, Tensor] | None = {} if self.training else None
        execution = _Execution(self, read)
        output = cast(Tensor, execution.run(x))
        if read is not None:
            self.read = read
        self.kept, self.hard_kept, self.masks = execution.kept, execution.hard_kept, execution.masks
        return output

    def run_part(self, part: Callable[[Sequence[str]], bool], x: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
        """Execute a part of the graph under the masks, `kept` and the like staying as they are.

        Args:
            part: whether a node belongs to it, by the names of the modules that it was traced in, outermost first.
                The part reads one value from outside and gives its last one.
            x: what it reads.

        Returns:
            What it gives, and the data masks (N, 1, H, W) of the regions in it by their number.
        """
        nodes = [node for node in self.graph.nodes if part(self.modules_of[node.name])]
        execution = _Execution(self)
        output = execution.run_part(nodes, x)
        return output, {number: mask for number, (mask, _) in execution.drawn.items()}

    @torch.no_grad()
    def module_calls(self, inputs: Tensor) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
        """Each region by itself, with its masks and without; see :class:`MaskedNetwork`."""
        opened = opened_copy(self)
        read: dict[int, Tensor] = {}
        self.enlarged(inputs, _Execution(self, read).run)
        return {
            f"region_masks.{number}": (
                functools.partial(self._region, number, read[number]),
                functools.partial(opened._region, number, read[number]),
            )
            for number in range(len(self.regions))
        }

    def _region(self, number: int, x: Tensor) -> Tensor:
        """A region by itself, on what it reads."""
        inside = self.regions[number].inside
        return _Execution(self).run_part([node for node in self.graph.nodes if node.name in inside], x)

    def follow_masks(self) -> set[int]:
        """Numbers of the regions that can be computed at kept locations alone, as their channel masks are."""
        return {
            number
            for number, (region, masks) in enumerate(zip(self.regions, self._masks(), strict=True))
            if region.in_rows and not masks.opened and not bool(masks.channels()[:, 0].any())
        }

    def budget_logits(self) -> list[Tensor]:
        """The last biases of the mask branches: a larger one keeps more locations."""
        biases = [cast(Tensor, masks.branch_end()[1]) for masks in self._masks() if not masks.opened]
        return [bias.detach()[1:] for bias in biases]

    @property
    def kept_base(self) -> float:  # type: ignore[override]
        """Share of all multiply-adds outside of regions, and in mask branches and bypasses."""
        return self._outside + sum(
            part for part, masks in zip(self._overheads, self._masks(), strict=True) if not masks.opened
        )

    def _masks(self) -> list[RegionMasks]:
        return [cast(RegionMasks, masks) for masks in self.region_masks]

    def assembled(self, masks: Sequence[Tensor]) -> None:
        """Describe a forward pass that was made in parts, by the whole of its masks."""
        dense = [cast(RegionMasks, part).channels()[:, 0] for part in self.region_masks]
        self.masks = list(masks)
        self.kept = [kept_fraction(mask, flags[:, None]) for mask, flags in zip(masks, dense, strict=True)]
        self.hard_kept = list(self.kept)

    @property
    def mask_names(self) -> list[str]:  # type: ignore[override]
        """The regions' first convolutions."""
        return [self.targets[region.convs[0]] for region in self.regions]


class _Execution(fx.Interpreter):
    """One run of a network's graph, in which convolutions of regions are masked.

    Args:
        owner: of the graph and the masks.
        read: filled with what regions read, by their number.
    """

    def __init__(self, owner: SparsifiedNetwork, read: dict[int, Tensor] | None = None):
        super().__init__(owner.network, graph=owner.graph)
        self.owner, self.training, self.tau, self.read = owner, owner.training, owner.tau, read
        self.entered = {region.entry: number for number, region in enumerate(owner.regions)}
        self.left = {region.exit: number for number, region in enumerate(owner.regions)}
        self.layers = {
            name: (number, layer)
            for number, region in enumerate(owner.regions)
            for layer, name in enumerate(region.convs)
        }
        self.skipped: set[str] = set()
        self.places: dict[int, Tensor] = {}  # kept locations of regions whose values are kept features
        self.inputs: dict[int, Tensor] = {}
        self.drawn: dict[int, tuple[Tensor, Tensor]] = {}
        self.opened: set[int] = set()
        self.kept: list[Tensor] = []
        self.hard_kept: list[Tensor] = []
        self.masks: list[Tensor] = []

    def run_node(self, n: fx.Node) -> Any:
        """Execute a node; behind an entry draw masks, before an exit mix."""
        if n.name in self.layers and self.layers[n.name][0] not in self.opened:
            result = self.convolve(n, *self.layers[n.name])
        elif n.name in self.skipped:
            result = cast(Tensor, self.map_nodes_to_values(n.args[0], n))  # its convolution has applied it
        else:
            plain = self.convolve_plainly(n)
            result = self.run_in_rows(n) if plain is None else plain
        if n.name in self.left and self.left[n.name] not in self.opened:
            result = self.mixed(self.left[n.name], result)
        if n.name in self.entered:
            self.draw(self.entered[n.name], result)
        return result

    def convolve_plainly(self, n: fx.Node) -> Tensor | None:
        """A convolution's output, if it has no mask and the backend in use is faster than torch; else None."""
        conv = self.fetch_attr(str(n.target)) if n.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or not keeps_size(conv):
            return None
        x, backend = cast(Tensor, self.map_nodes_to_values(n.args[0], n)), self.owner.backend
        if not self.by_operator(x) or not dispatch.beats_dense(conv.weight, x, backend):
            return None
        return joined_conv([x], conv.weight, conv.bias, backend=backend)

    def run_part(self, nodes: Sequence[fx.Node], x: Tensor) -> Tensor:
        """The last of some nodes' values; `x` is the one value that they read from outside."""
        own = set(nodes)
        read = {value for node in nodes for value in node.all_input_nodes if value not in own}
        [entry] = [value for value in read if value.op != "get_attr"]
        self.env = {value: self.run_node(value) for value in read if value.op == "get_attr"}
        self.env[entry] = x
        if entry.name in self.entered:
            self.draw(self.entered[entry.name], x)
        for node in nodes:
            self.env[node] = self.run_node(node)
            for value in self.user_to_last_uses.get(node, ()):
                self.env.pop(value, None)
        return cast(Tensor, self.env[nodes[-1]])

    def draw(self, number: int, x: Tensor) -> None:
        masks = self.owner.region_masks[number]
        assert isinstance(masks, RegionMasks)
        if self.read is not None:
            self.read[number] = x.detach()
        if masks.constant_mask():
            self.opened.add(number)
            mask = x.new_ones(1, 1, 1, 1, dtype=torch.bool).expand(len(x), 1, *x.shape[2:])
            dense = torch.ones_like(masks.ch_mask[0, 0, :, 0], dtype=torch.bool)
            hard = x.new_ones(len(dense))
        else:
            mask, dense, hard = masks.draw(x, self.tau, self.by_operator(x))
            self.inputs[number] = x
            region = self.owner.regions[number]
            if region.in_rows and self.takes_rows(number, x, dense):
                self.places[number] = kept_places(mask)
        self.drawn[number] = mask, dense
        self.kept.append(kept_fraction(mask, dense[:, None]))
        self.hard_kept.append(hard)
        self.masks.append(mask)

    def by_operator(self, x: Tensor) -> bool:
        """Whether the toolkit's operators compute mask branches; standard ones have gradients and forms in ONNX."""
        if self.training or self.owner.multiplies or torch.is_grad_enabled():
            return False
        return not (x.is_meta or torch.compiler.is_compiling()) or torch.compiler.is_exporting()

    def takes_rows(self, number: int, x: Tensor, dense: Tensor) -> bool:
        """Whether a region is computed at kept locations alone."""
        if not self.by_operator(x):
            return False
        if torch.compiler.is_exporting() or dispatch.in_program():
            return number in self.owner.exported_in_rows
        backend = dispatch.able_or_reference(dispatch.current(self.owner.backend), x)
        return backend.in_kept_rows and not bool(dense.any())

    def run_in_rows(self, n: fx.Node) -> Any:
        """Execute a node, which reads the input of a region in rows, if it does, at kept locations."""
        regions = self.owner.regions
        for number, places in self.places.items():
            entry = next((value for value in n.all_input_nodes if value.name == regions[number].entry), None)
            if entry is not None and n.name in regions[number].inside:
                whole, self.env[entry] = self.env[entry], kept_features(self.env[entry], places)
                try:
                    return super().run_node(n)
                finally:
                    self.env[entry] = whole
        return super().run_node(n)

    def convolve(self, n: fx.Node, number: int, layer: int) -> Tensor:
        """A layer's output, zero where its region's mask drops it; of a region in rows kept features."""
        mask, dense = self.drawn[number]
        region = self.owner.regions[number]
        conv = cast(nn.Conv2d, self.fetch_attr(str(n.target)))
        x = cast(Tensor, self.map_nodes_to_values(n.args[0], n))
        activation = "none"
        fused = region.fused.get(n.name)
        if fused is not None:
            self.skipped.add(fused[0])
            activation = fused[1]
        if number in self.places:
            prelu, slopes = region.prelus.get(n.name), None
            if prelu is not None:
                self.skipped.add(prelu)
                slopes = cast(nn.PReLU, self.fetch_attr(self.owner.targets[prelu])).weight
            kept = n.all_input_nodes[0].name != region.entry
            rows: Tensor = torch.ops.sparsemask.kept_conv(
                x, conv.weight, conv.bias, mask, self.places[number], conv.padding, conv.dilation, conv.groups, kept,
                activation, slopes, dispatch.current(self.owner.backend),
            )  # fmt: skip
            return rows
        if self.training or self.owner.multiplies or mask.is_floating_point():
            # Behind the activation: a ReLU of 0 has no gradient.
            gate, mine = mask.to(x.dtype), dense[layer].to(x.dtype)
            return act.apply(activation, cast(Tensor, conv(x))) * (mine + (1 - mine) * gate)
        flags = torch.ones(max(conv.in_channels, conv.out_channels), dtype=torch.bool, device=x.device)
        output: Tensor = torch.ops.sparsemask.conv(
            x, conv.weight, conv.bias, mask, flags[: conv.in_channels], flags[: conv.out_channels] & dense[layer],
            conv.stride, conv.padding, conv.dilation, [0, 0], False, conv.groups, activation,
            dispatch.current(self.owner.backend),
        )  # fmt: skip
        return output

    def mixed(self, number: int, y: Tensor) -> Tensor:
        """The region's output where it is kept, its bypass elsewhere."""
        if number in self.places:
            bypass = cast(nn.Conv2d, self.owner.bypasses[number])
            whole: Tensor = torch.ops.sparsemask.merge_kept(
                y, self.inputs.pop(number), self.drawn[number][0], self.places[number], bypass.weight, bypass.bias,
                dispatch.current(self.owner.backend),
            )  # fmt: skip
            return whole
        mask, x = self.drawn[number][0], self.owner.bypasses[number](self.inputs.pop(number))
        return torch.lerp(x, y, mask) if mask.is_floating_point() else torch.where(mask, y, x)


class _Default(Enum):
    """What `keep` is where nothing is given."""

    HALF = 0.5


def sparsify(
    network: nn.Module,
    example: Tensor,
    keep: float | None | Literal[_Default.HALF] = _Default.HALF,
    *,
    budget: float | str | None = None,
    steps: int = 200,
    config: Mapping[str, Any] | None = None,
) -> SparsifiedNetwork:
    """Give any network of convolutions masks over locations, so that it computes where it must.

    Residual blocks and chains of convolutions of one size get a mask branch each where that pays off, and a 1×1
    convolution, the bypass, for what is dropped. Without labels, bypasses are fitted to the blocks on the example by
    least squares, branches to where they fail, shifted so that `keep` of the multiply-adds is executed there. The other
    weights stay as they are; training them with their masks (``retrain/specialize.py``, or any loop: in training masks
    are learnt) wins back what that costs.

    Args:
        network: any network that ``torch.fx`` can trace, with an input of images; used, not copied.
        example: inputs (N, C, H, W) like those to come, a few real ones rather than noise.
        keep: share of the multiply-adds on the example, mask branches included; None: masks keep (nearly) everything,
            to be trained. Default: 0.5.
        budget: instead, milliseconds ("12 ms") of a call on the example as measured on this machine, with as many
            threads as torch has now, or a share ("70%") of what the network takes without masks. Regions whose masks
            would save nothing there get none. The result's `report` says what was measured and decided.
        steps: of the fit.
        config: what builds the network again, for files.

    Returns:
        The network in evaluation mode, on the device of the network.

    Raises:
        UseError: an example that is no batch of images, a network that cannot be traced or has nothing to mask, a
            share that it cannot have, `keep` and `budget` together, or a budget that no masks reach or that needs none;
            the message says what the least is made of.

    Example:
        ``fast = sparsemask.sparsify(net, pictures, keep=0.5)``, or ``budget="12 ms"``
    """
    if budget is not None and keep is not _Default.HALF:
        raise UseError("keep and budget: one of them at a time; leave one out")
    if not isinstance(example, Tensor) or example.ndim != 4:
        shape = f"one of shape {tuple(example.shape)}" if isinstance(example, Tensor) else f"a {type(example).__name__}"
        raise UseError(f"example: inputs as one tensor (N, C, H, W), not {shape}")
    goal = None if budget is None else Target.parse(budget, "milliseconds", "budget")
    keep = _Default.HALF.value if keep is _Default.HALF else keep
    training = network.training
    network.eval()
    sparse = SparsifiedNetwork(network, example, config).eval()
    if goal is not None:
        from sparsemask.spaces.sparsified.budget import meet_milliseconds

        meet_milliseconds(sparse, example, goal, steps)
        return sparse
    if keep is None:
        network.train(training)
        return sparse
    begin(sparse, example, keep, steps)
    return sparse


def begin(
    network: SparsifiedNetwork,
    example: Tensor,
    keep: float,
    steps: int = 200,
    measure: Callable[..., Tensor] | None = None,
) -> None:
    """Start masks where a budget is met and the regions are kept that their bypasses fit worst.

    Args:
        network: its branches and bypasses are changed in place.
        example: inputs like those to come.
        keep: share of all multiply-adds that is executed on the example, branches and bypasses included.
        steps: of the branches' fit.
        measure: what `keep` is a share of instead, (network, hard=True) after a forward pass; from 0 to 1.

    Raises:
        UseError: a share that the network cannot have.
    """
    least = float(network.kept_base) if measure is None else 0.0
    if not least < keep <= 1:
        raise UseError(
            f"keep {keep:g}: between {least:.2f}, what has no mask and the mask branches, and 1 (of all multiply-adds)"
        )
    with evaluating(network), dispatch.repeatable():
        fit(network, example, (keep - least) / (1 - least), steps)
        meet_budget(network, example, keep, measure or mean_kept)


def fit(network: SparsifiedNetwork, example: Tensor, share: float, steps: int = 200) -> None:
    """Fit bypasses to what regions compute on an example, and mask branches to where they do not.

    Regions without masks are passed over.

    Args:
        network: changed in place.
        example: inputs.
        share: of the locations that count as badly fitted, and are to be kept.
        steps: of Adam, on each branch by itself.
    """
    parts = zip(network.region_masks, network.bypasses, _changes(network, example), strict=True)
    for masks, bypass, (x, y) in parts:
        assert isinstance(masks, RegionMasks) and isinstance(bypass, nn.Conv2d)
        if masks.opened:
            continue
        wanted = torch.zeros_like(x[:, 0], dtype=torch.bool)
        for _ in range(_ROUNDS):
            fit_bypass(bypass, x, y, ~wanted)
            with torch.no_grad():
                error = (bypass(x) - y).square().mean(1)
            rank = min(error.numel(), max(1, round((1 - share) * error.numel())))
            wanted = error > error.flatten().kthvalue(rank).values
        _fit_branch(masks, x, wanted.to(x.dtype), steps)


@torch.no_grad()
def fit_bypass(bypass: nn.Conv2d, x: Tensor, y: Tensor, where: Tensor) -> None:
    """Fit a 1×1 convolution to features by least squares, in float64; without any location it stays as it is.

    Args:
        bypass: changed in place.
        x: (N, C, H, W), what it reads.
        y: (N, C, H, W), what it shall give.
        where: bool (N, H, W), the locations that count.
    """
    rows = x.movedim(1, -1)[where].double()
    change = y.movedim(1, -1)[where].double() - rows
    if not len(rows):
        return
    channels = rows.shape[1]
    ones = rows.new_ones(len(rows), 1)
    ridge = _RIDGE * float(rows.square().sum()) / channels + 1e-12
    if bypass.groups == 1:
        design = torch.cat([rows, ones], 1)
        gram = design.T @ design + ridge * torch.eye(channels + 1).to(design)
        solution = torch.linalg.solve(gram, design.T @ change)
        slope, offset = torch.eye(channels).to(rows) + solution[:-1].T, solution[-1]
    else:
        mean, wanted = rows.mean(0), change.mean(0)
        centred = rows - mean
        factor = (centred * (change - wanted)).sum(0) / (centred.square().sum(0) + ridge)
        slope, offset = 1 + factor, wanted - factor * mean
    bypass.weight.copy_(slope.reshape(bypass.weight.shape))
    cast(Tensor, bypass.bias).copy_(offset)


def _fit_branch(masks: RegionMasks, x: Tensor, wanted: Tensor, steps: int) -> None:
    """Fit a mask branch to the locations (N, H, W) that are to be kept, 1 or 0."""
    scale = x.abs().mean().clamp_min(1e-12)
    parameters = list(masks.spa_mask.parameters())
    with torch.enable_grad(), torch.random.fork_rng(devices=[]):
        first = cast(nn.Conv2d, masks.spa_mask.first())
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


def _modules_of(node: fx.Node) -> tuple[str, ...]:
    """Names of the modules that a node was traced in, outermost first."""
    return tuple(name for name, _ in node.meta.get("nn_module_stack", {}).values())


def _identity(channels: int, groups: int) -> nn.Conv2d:
    """A 1×1 convolution that changes nothing."""
    conv = nn.Conv2d(channels, channels, 1, groups=groups)
    with torch.no_grad():
        weight = torch.eye(channels) if groups == 1 else torch.ones(channels)
        conv.weight.copy_(weight.reshape(conv.weight.shape))
        cast(Tensor, conv.bias).zero_()
    return conv


def _changes(network: SparsifiedNetwork, example: Tensor) -> list[tuple[Tensor, Tensor]]:
    """(input, output) of every region when everything is computed."""
    wanted = {name for region in network.regions for name in (region.entry, region.exit)}
    seen = dense_pass(network, example, wanted)[1]
    return [(seen[region.entry], seen[region.exit]) for region in network.regions]


@torch.no_grad()
def dense_pass(network: SparsifiedNetwork, x: Tensor, wanted: Collection[str]) -> tuple[Tensor, dict[str, Tensor]]:
    """What a network gives on inputs (N, C, H, W) when everything is computed, and values of its graph by name."""
    seen: dict[str, Tensor] = {}

    class Watching(fx.Interpreter):
        """Keeps what is wanted."""

        def run_node(self, n: fx.Node) -> Any:
            result = super().run_node(n)
            if n.name in wanted:
                seen[n.name] = result.clone()
            return result

    return network.enlarged(x, Watching(network.network, graph=network.graph).run), seen
