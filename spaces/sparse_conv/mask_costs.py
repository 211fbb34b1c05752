"""What masks cost and save: milliseconds of a network by the fractions that its masked modules keep, as measured.

A module that keeps a fraction k under masks takes a + b·k milliseconds more than without them: a is what its mask
branch and the way around dropped locations cost, less all that could be saved; b·k is what is kept. So the time of a
network is a sum over its modules, differentiable in the kept fractions, and a budget in milliseconds is one of a
weighted kept fraction. A module whose masks would save nothing worth having even at `LEAST` is better left without.
"""

from __future__ import annotations

import copy
import functools
import math
import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sparsemask import files, spaces
from sparsemask.config import flag
from sparsemask.engine import data, distributed
from sparsemask.errors import UseError, say
from sparsemask.ops import dispatch
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork, MaskModule
from sparsemask.spaces.sparse_conv.masking import blocks, channel_logits
from sparsemask.spaces.sparse_conv.plan import Machine
from sparsemask.spaces.sparse_conv.planning import SKIPPING, drop_costly, fast_form, gains, open_modules, opened_copy
from sparsemask.sparse import backend
from sparsemask.timing import BUSY, evaluating, thread_count, timer
from sparsemask.training_setup import Context

LEAST = 0.1
"""The smallest kept fraction that a budget may ask for."""
COSTS = "mask_costs.json"
FORMAT = 1
ALL, PAYING = "all", "paying"
_KEPT = (0.2, 0.5, 0.8)  # at which modules are measured
_WORTH, _WORTH_ALL = 0.01, 0.05  # of the network's time: what a mask saves at least, and all of them if these are many
_HALVINGS = 16
_SPAN, _WIDEST, _WIDER = 8.0, 512.0, 8  # logits between which keeping is looked for: at first, at most, and each time
_ROUNDS, _FEW, _LONG = 6, 2, 50.0  # measurements, and of networks that take so many milliseconds
_NEAR, _APART = 0.05, 0.1  # of a fraction: near enough, and far enough apart to show a slope
_NAMED = 6  # modules in a line
_TIMES = 2  # that fractions are looked for
_SECONDS = 20.0


@dataclass(frozen=True)
class MaskCosts:
    """Measured costs of one network, input size and machine.

    Attributes:
        machine: that they were measured on.
        size: of the input, in words.
        unmasked: milliseconds without any masks, in the fastest form.
        modules: (a, b) of each module with masks: with masks that keep k it takes a + b·k ms more than without.
    """

    machine: Machine
    size: str
    unmasked: float
    modules: Mapping[str, tuple[float, float]]

    def paying(self) -> list[str]:
        """The modules whose masks save time worth having if they keep little."""
        saved = {name: -(a + b * LEAST) for name, (a, b) in self.modules.items()}
        least = min(_WORTH, _WORTH_ALL / max(len(saved), 1)) * self.unmasked
        return [name for name, ms in saved.items() if ms > least and self.modules[name][1] > 0]

    def even(self, name: str) -> float:
        """The kept fraction at which a module's masks neither cost nor save."""
        a, b = self.modules[name]
        return -a / b if b > 0 else 0.0

    def predict(self, kept: Mapping[str, float]) -> float:
        """Milliseconds of the network if these modules have masks that keep so much, and the others have none."""
        return self.unmasked + sum(a + b * kept[name] for name, (a, b) in self.modules.items() if name in kept)

    def adding_up(self, names: Sequence[str], whole: Sequence[tuple[Mapping[str, float], float]]) -> MaskCosts:
        """The same, modules corrected so that they add up to whole networks.

        Args:
            names: modules, whose costs rise with what they keep; without any, nothing changes.
            whole: what modules keep, and the milliseconds, of networks with the masks of these modules alone.
        """
        if not names:
            return self
        own = {name: self.modules[name] for name in names}
        slope = sum(b for _, b in own.values())
        mean = [sum(b * kept[name] for name, (_, b) in own.items()) / slope for kept, _ in whole]
        fixed, rise = _line([(k, ms - self.unmasked) for k, (_, ms) in zip(mean, whole, strict=True)])
        more = fixed - sum(a for a, _ in own.values())
        right = {name: (a + more * b / slope, b * rise / slope) for name, (a, b) in own.items()}
        return replace(self, modules={**self.modules, **right})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them as JSON, atomically."""
        files.write_json(path, {"format": FORMAT, **asdict(self)})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> MaskCosts:
        """Read them; UseError for a file that holds none."""
        content = files.read_json(path)
        try:
            if content["format"] != FORMAT:
                raise UseError(f"{path}: costs of format {content['format']!r}; this version reads {FORMAT}")
            modules = {str(name): (float(a), float(b)) for name, (a, b) in content["modules"].items()}
            return cls(Machine(**content["machine"]), str(content["size"]), float(content["unmasked"]), modules)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise UseError(f"{path}: no costs of masks") from None


class Measured(Protocol):
    """What is asked of a :class:`~sparsemask.spaces.sparse_conv.masked_space.MaskedSpace`."""

    def dense_form(self, network: MaskedNetwork) -> nn.Module:
        """The same weights without masks."""

    def size_words(self, shape: Sequence[int]) -> str:
        """An input's size as text."""


def measure_costs(space: Measured, network: MaskedNetwork, inputs: Any, seconds: float = _SECONDS) -> MaskCosts:
    """Measure what each module's masks cost on this machine.

    It is done with as many threads as torch has now. Where other processes keep several threads waiting, one thread's
    processor time is measured instead, and a line says so.

    Masks keep several fractions, half of it by dense channels and half by locations. Each module is timed with masks
    and without where it stands, or, where a network is computed in one call, whole networks with the masks of one
    module. Last, whole networks with the masks of all modules that pay are timed, and the modules' costs corrected so
    that they add up to these: what is timed alone has the caches to itself.

    Args:
        space: of the network; a fast form (:class:`~sparsemask.spaces.protocols.HasFastForm`) is what is timed.
        network: not changed; its weights matter little, those of its mask branches must not be all alike.
        inputs: a batch of the size that counts.
        seconds: spent about on timing.
    """
    if inputs.device.type == "cpu" and torch.get_num_threads() > 1:
        probe = copy.deepcopy(network).requires_grad_(False).eval()
        call = {"probe": functools.partial(probe, inputs)}
        with evaluating(probe):
            several, one = (timer(inputs.device, n, 1.0)(call, _ROUNDS)[0] for n in (torch.get_num_threads(), 1))
        if several["probe"] > BUSY * one["probe"]:
            say("other processes keep threads waiting: what masks cost and save is measured on one")
            with thread_count(1):
                return measure_costs(space, network, inputs, seconds)
    device, dtype, threads = inputs.device, next(network.parameters()).dtype, torch.get_num_threads()
    skipping = [name for name in SKIPPING if dispatch.find(name).why_not(device, dtype) is None]
    base = copy.deepcopy(network).requires_grad_(False).eval()
    base.plans = None
    names = list(base.mask_modules())
    points: dict[str, list[tuple[float, float]]] = {name: [] for name in names}  # (kept, milliseconds more)
    with torch.random.fork_rng(devices=[]), evaluating(base), backend(skipping[0]) if skipping else nullcontext():
        torch.manual_seed(0)
        masked = {fraction: copy.deepcopy(base) for fraction in _KEPT}
        for fraction, network in masked.items():
            found = _keep(network, inputs, fraction)
            more = gains(network, inputs, seconds / (len(_KEPT) + 1), space)
            for name in names:
                points[name].append((found[name], more.get(name, 0.0)))
        unmasked = _call(space, opened_copy(base), inputs)
        once = timer(device, threads, 0.0)({0: unmasked}, 1)[0][0]
        lines = {name: _line(measured) for name, measured in points.items()}
        costs = MaskCosts(Machine.here(device), space.size_words(tuple(inputs.shape)), once, lines)
        paying = costs.paying()
        forms = {fraction: opened_copy(network, paying) for fraction, network in masked.items()} if paying else {}
        whole = {fraction: _kept(form, inputs) for fraction, form in forms.items()}
        calls: dict[Hashable, Callable[[], object]] = {
            **{fraction: _call(space, form, inputs) for fraction, form in forms.items()},
            "opened": unmasked,
            "dense": functools.partial(space.dense_form(base), inputs),
        }
        times, _ = timer(device, threads, seconds / (len(_KEPT) + 1))(calls, _FEW if once > _LONG else _ROUNDS)
    costs = replace(costs, unmasked=min(times["opened"], times["dense"]))
    return costs.adding_up(paying, [(whole[fraction], times[fraction]) for fraction in forms])


def _call(space: object, network: MaskedNetwork, inputs: Any) -> Callable[[], object]:
    return functools.partial(fast_form(space, network), inputs)


def _line(points: list[tuple[float, float]]) -> tuple[float, float]:
    """(a, b) of the line of least squares through (k, milliseconds)."""
    mean_k, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    spread = sum((k - mean_k) ** 2 for k, _ in points)
    if max(k for k, _ in points) - min(k for k, _ in points) < _APART:  # the masks keep what they keep
        return mean_y, 0.0
    slope = sum((k - mean_k) * (y - mean_y) for k, y in points) / spread
    return mean_y - slope * mean_k, slope


def module_kept(network: MaskedNetwork, hard: bool = False) -> dict[str, Tensor]:
    """The kept fraction of each module with masks in the last forward pass, a scalar tensor by the module's name.

    Layers of a module weigh as their multiply-adds, where the network knows these.

    Args:
        network: after a forward pass.
        hard: of hard masks instead of soft ones.
    """
    fractions = network.hard_kept if hard else network.kept
    weights = network.kept_weights or [torch.ones_like(one) for one in fractions]
    owners = _owners(network)
    found: dict[str, Tensor] = {}
    for name in dict.fromkeys(owners):
        own = [(w, f) for w, f, owner in zip(weights, fractions, owners, strict=True) if owner == name]
        total = torch.stack([(weight * fraction).sum() for weight, fraction in own]).sum()
        found[name] = total / torch.stack([weight.sum() for weight, _ in own]).sum()
    return found


def _owners(network: MaskedNetwork) -> list[str]:
    """Of each block with channel masks, in order, the module whose data mask it stands under."""
    modules = list(network.mask_modules())
    return [
        next(name for name in modules if block == name or block.startswith(f"{name}.")) for block in blocks(network)
    ]


@torch.no_grad()
def _keep(network: MaskedNetwork, inputs: Any, fraction: float) -> dict[str, float]:
    """Set masks so that every module keeps about a fraction; returns what each keeps then."""
    modules = network.mask_modules()
    for block, owner in zip(blocks(network).values(), _owners(network), strict=True):
        share = fraction if modules[owner].branch() is None else fraction / 2
        logits = channel_logits(block)
        dense = torch.rand(logits.shape[:2]).argsort(1) < round(share * logits.shape[1])
        logits.copy_(torch.stack([dense, ~dense], -1).to(logits) * 2 - 1)
    found = _kept_at(network, inputs, {})
    for _ in range(_TIMES):  # what a module keeps depends on those before it, too
        far = [name for name, kept in found.items() if abs(kept - fraction) >= _NEAR and modules[name].branch()]
        if far:
            found = _halved(network, inputs, fraction, far)
    return found


def _halved(network: MaskedNetwork, inputs: Any, fraction: float, names: Sequence[str]) -> dict[str, float]:
    """Look for what some modules' branches must be favoured by, all at once; returns what every module keeps then."""
    low, high = (dict.fromkeys(names, bound) for bound in (-_SPAN, _SPAN))
    for bounds, sign in ((low, 1), (high, -1)):  # of features of any size
        while True:
            found = _kept_at(network, inputs, bounds)
            short = [n for n in names if sign * (found[n] - fraction) > _NEAR and abs(bounds[n]) < _WIDEST]
            if not short:
                break
            bounds.update({name: _WIDER * bounds[name] for name in short})
    for _ in range(_HALVINGS):
        middle = {name: (low[name] + high[name]) / 2 for name in names}
        found = _kept_at(network, inputs, middle)
        if all(abs(found[name] - fraction) < _NEAR for name in names):
            break
        for name in names:
            (high if found[name] > fraction else low)[name] = middle[name]
    return found


def _kept_at(network: MaskedNetwork, inputs: Any, margins: Mapping[str, float]) -> dict[str, float]:
    """What modules keep where mask branches favour keeping by these margins, in logits."""
    modules = network.mask_modules()
    for name, margin in margins.items():
        branch, (_, bias) = modules[name].branch(), modules[name].branch_end()
        if bias is None:
            assert branch is not None
            branch.threshold = 1 / (1 + math.exp(margin))
        else:
            bias[1] = bias[0] + margin
    return _kept(network, inputs)


@torch.no_grad()
def _kept(network: MaskedNetwork, inputs: Any) -> dict[str, float]:
    network(inputs)
    return {name: float(kept) for name, kept in module_kept(network).items()}


@dataclass(frozen=True)
class MaskBudget:
    """A budget in milliseconds for a network's masks.

    Attributes:
        most: milliseconds of the network that is wanted.
        costs: of the network, on this machine.
        masked: modules that have masks; the others are left without.
        keep: weighted kept fraction of these that takes `most` milliseconds.
    """

    most: float
    costs: MaskCosts
    masked: tuple[str, ...]
    keep: float

    @classmethod
    def of(cls, costs: MaskCosts, budget: float | str, words: str | None = None) -> MaskBudget:
        """The budget of a flag.

        Args:
            costs: of the network.
            budget: milliseconds, or such as "70%", a share of what the network takes without masks.
            words: the budget as the user gave it; None: as the flag.

        Raises:
            UseError: more than the network takes without masks, or less than any masks reach; the message says what
                the least is made of.
        """
        share = float(budget.rstrip("%")) / 100 if isinstance(budget, str) else None
        most = float(budget) if share is None else share * costs.unmasked
        words = words or f"--budget_ms {budget if isinstance(budget, str) else f'{budget:g}'}"
        masked = costs.paying()
        whole = f"without masks the network takes {costs.unmasked:.3g} ms at {costs.size}"
        if most >= costs.unmasked:
            raise UseError(f"{words}: {whole} already; a budget is below that")
        if not masked:
            raise UseError(f"{words}: {whole}, and no module's masks would save time there: larger inputs may")
        fixed = costs.unmasked + sum(costs.modules[name][0] for name in masked)
        slope = sum(costs.modules[name][1] for name in masked)
        keep = (most - fixed) / slope
        if keep < LEAST:
            least = costs.predict(dict.fromkeys(masked, LEAST))
            saved = {name: -costs.modules[name][0] - costs.modules[name][1] * LEAST for name in masked}
            parts = ", ".join(f"{name} saves {saved[name]:.2g}" for name in sorted(masked, key=lambda n: -saved[n])[:4])
            raise UseError(
                f"{words}: the least that masks reach is {least:.3g} ms, where they keep {LEAST:g} ({whole}; {parts})"
            )
        return cls(most, costs, tuple(masked), min(keep, 1.0))

    def kept(self, network: MaskedNetwork, hard: bool = False) -> Tensor:
        """The kept fraction of the last forward pass, modules weighed by the milliseconds that they take a fraction."""
        fractions = module_kept(network, hard)
        slopes = {name: self.costs.modules[name][1] for name in self.masked}
        total = torch.stack([fractions[name] * slope for name, slope in slopes.items()]).sum()
        return total / sum(slopes.values())

    def predict(self, network: MaskedNetwork) -> float:
        """Milliseconds that the network takes, from the hard masks of its last forward pass."""
        fractions = module_kept(network, hard=True)
        return self.costs.predict({name: float(fractions[name].detach()) for name in self.masked})

    def prepare(self, network: MaskedNetwork) -> None:
        """Leave the modules whose masks cannot pay without masks: all their channels are dense, for good."""
        for name, module in network.mask_modules().items():
            if name not in self.masked:
                module.open_masks()

    def open_blocks(self, network: MaskedNetwork) -> list[str]:
        """Names of the blocks with channel masks in modules that are left without masks."""
        return [
            block for block, owner in zip(blocks(network), _owners(network), strict=True) if owner not in self.masked
        ]

    def frozen(self, network: nn.Module) -> set[int]:
        """Identities of the parameters that are not trained: masks of modules that have none."""
        assert isinstance(network, MaskedNetwork)
        parameters: list[nn.Parameter] = []
        for name, module in network.mask_modules().items():
            if name not in self.masked:
                parameters += _mask_parameters(module)
        return {id(parameter) for parameter in parameters}

    def met(self, context: Context, network: MaskedNetwork) -> str:
        """How a finished network keeps to the budget, as a line; it is timed as its costs were.

        Args:
            context: of the run.
            network: in evaluation mode, on the run's device.
        """
        inputs, device = _example(context), context.arithmetic.device
        call = {"network": _call(spaces.get(context.config.network.space), network, inputs)}
        with evaluating(network):
            times, _ = timer(device, self.costs.machine.threads, 1.0)(call, _ROUNDS)
        return f"budget {self.most:.3g} ms: {self.predict(network):.3g} predicted, {times['network']:.3g} measured"

    def lines(self) -> list[str]:
        """What was measured and decided, as lines."""
        costs, left = self.costs, [name for name in self.costs.modules if name not in self.masked]
        found = [
            f"budget: {self.most:.3g} ms of {costs.unmasked:.3g} without masks at {costs.size}; "
            f"masks keep {self.keep:.2f} of {_listed(self.masked)}"
        ]
        if left:
            found.append(f"without masks, which would save nothing there: {_listed(left)}")
        return found


def _listed(names: Sequence[str]) -> str:
    """Names of modules in a line."""
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _mask_parameters(module: MaskModule) -> list[nn.Parameter]:
    """The parameters of a module's channel masks and mask branch."""
    branch = module.branch()
    assert branch is None or isinstance(branch, nn.Module)
    return [*module.channel_parameters(), *(() if branch is None else branch.parameters())]


def _example(context: Context) -> Any:
    """A batch of the first validation input, whose size counts."""
    where, source = context.arithmetic, context.task.eval_data
    return data.collate(source, [source[0]])[0].to(where.device, where.parameters)


def masks_flag(when: str) -> Any:
    """The flag --masks of a training under fixed masks.

    Args:
        when: masks are dropped, in words.
    """
    return flag(
        ALL,
        choices=(ALL, PAYING),
        help=f"paying: {when}, drop the masks that cost more time on this machine than they save; the weights are then "
        "trained without them (default: all)",
    )


def require_modules(network: MaskedNetwork, space: str, flag: str, instead: str) -> None:
    """Raise UseError unless a network has modules whose masks can be timed one by one.

    Args:
        network: of the space.
        space: its name.
        flag: what asks for it.
        instead: what to do otherwise.
    """
    if not network.mask_modules():
        raise UseError(f"{flag}: the masks of space '{space}' are not timed one by one; {instead}")


def leave_paying(context: Context, network: MaskedNetwork) -> None:
    """Drop the masks that cost more time here than they save, said in a line.

    Of several processes the first measures, and alone changes its network: the others need its parameters after that.

    Args:
        context: of the run.
        network: on any device; changed in place.
    """
    if distributed.rank():
        return
    where = context.arithmetic
    twin = copy.deepcopy(network).to(where.device, where.parameters).eval()
    dropped = drop_costly(spaces.get(context.config.network.space), twin, _example(context))
    if not dropped:
        return
    for name in dropped:
        network.mask_modules()[name].open_masks()
    count = len(twin.mask_modules())
    rest = count - len(open_modules(twin))
    left = f"{rest} of {count} modules keep theirs" if rest else "training goes on without masks"
    context.say(f"masks cost more time here than they save: dropped those of {', '.join(dropped)}; {left}")


def open_budget(context: Context, network: MaskedNetwork) -> MaskBudget | None:
    """The budget in milliseconds of a training command; modules whose masks cannot pay are left without them.

    What the run reckons with stays in its folder, so that a resumed run reckons alike. Of several processes the first
    measures.

    Args:
        context: of the run.
        network: as its training begins, on the CPU; changed in place.

    Returns:
        None without --budget_ms.

    Raises:
        UseError: a budget that no masks reach, or that needs none.
    """
    config = context.config
    if config.family.budget_ms is None:
        return None
    require_modules(network, config.network.space, "--budget_ms", "take --keep")
    path = context.run.folder / COSTS
    if not path.exists():
        if distributed.rank() == 0:
            context.say("measuring what masks cost and save here ...")
            where = context.arithmetic
            twin = copy.deepcopy(network).to(where.device, where.parameters)
            measure_costs(spaces.get(config.network.space), twin, _example(context)).save(path)
        distributed.barrier()
    budget = MaskBudget.of(MaskCosts.load(path), config.family.budget_ms)
    budget.prepare(network)
    if context.state is None:
        for line in budget.lines():
            context.say(line)
    return budget
