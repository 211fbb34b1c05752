"""Search for removable groups of weights: proximal gradient on rows and columns of the sparsity-inducing matrices.

Hinge (Li et al., CVPR 2020, arXiv 2003.08935), section 3.3. After every SGD step each group is shrunk by a proximal
operator; the search ends when the cost of the groups above the running threshold reaches the target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from sparsemask import spaces
from sparsemask.config import RunConfig, flag
from sparsemask.engine import Method
from sparsemask.engine.randomness import seed_all
from sparsemask.families import Built, TrainingFamily
from sparsemask.options import factor, natural, positive, rate
from sparsemask.search import proximal
from sparsemask.spaces.group_sparsity import groups, records
from sparsemask.spaces.group_sparsity.options import CountingSection, memory_flag
from sparsemask.spaces.group_sparsity.reduction import Hinged, Reduction
from sparsemask.spaces.group_sparsity.threshold import kept_sets
from sparsemask.training_setup import Context
from sparsemask.weights import load_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupSearchSection(CountingSection):
    """How groups are driven to zero."""

    title = "group sparsity search"
    inherited_last = True
    regularizer: str = flag("l1", help=lambda: f"{', '.join(proximal.operators())} on the groups' norms (default: l1)")
    sparse: float = flag(2e-4, rate, help="factor λ of the regularizer (default: 2e-4)")
    sparsify: str = flag(
        "pg",
        choices=("pg", "sgd"),
        help="proximal gradient, or the penalty's own gradient, which shrinks but nullifies nothing (default: pg)",
    )
    q: float = flag(1.0, factor, help="of the watched penalty (Σ n^q)^(1/q) (default: 1)")
    prox_freq: int = flag(1, positive, help="steps between proximal steps (default: 1)")
    prox_start: int = flag(0, natural, help="steps before the first one (default: 0)")
    anneal: float = flag(0.0, rate, help="λ is divided by it as groups vanish, 0: never")
    anneal_at: Sequence[float] = flag([10.0, 5.0], rate, nargs=2, help="penalties below which λ is divided once, twice")
    layer_balancing: bool = flag(False, help="λ of a matrix times the mean norm its groups begin with")
    lr_ratio: float = flag(0.01, rate, help="factor on --lr for all but the matrices")
    lr_adjust: str = flag(
        "p1",
        choices=("p1", "p2", "none"),
        help="learning rates follow the ratio of the two kinds of groups' gradients (default: p1)",
    )
    channels_last: bool = memory_flag()
    stop_limit: float = flag(0.1, rate, help="the search ends this near above --target")


class GroupSearch(Method):
    """SGD with three learning rates, and a proximal step after each update."""

    def __init__(self, config: RunConfig, reduction: Reduction):
        self.search: GroupSearchSection = config.family
        self.reduction = reduction
        self.operator = proximal.operator_name(self.search.regularizer)
        self.balance: list[float] = []
        self.gradient_ratio: float | None = None
        self.steps_done = 0
        self.rate = self.strength = 0.0
        self.penalties: dict[str, float] = {}
        self.ratio, self.shares = math.nan, {}

    def groups(self, model: torch.nn.Module, config: RunConfig) -> list[dict]:
        """Matrices of P1 and of P2 at --lr (those in both as P1's), all other parameters at --lr times --lr_ratio."""
        self._prepare(model)
        assigned: set[int] = set()
        matrices = {}
        for name, sets in (("P1", self.first), ("P2", self.second)):
            matrices[name] = [p for p in self._matrices(model, sets) if id(p) not in assigned]
            assigned |= {id(p) for p in matrices[name]}
        others = [p for p in model.parameters() if p.requires_grad and id(p) not in assigned]
        lr = config.training.lr
        param_groups = [{"name": "network", "params": others, "lr": lr * config.family.lr_ratio}]
        param_groups += [{"name": name, "params": params, "lr": lr} for name, params in matrices.items() if params]
        self.adjusts = (
            config.family.lr_adjust != "none"
            and len(param_groups) == 3
            and len(matrices["P2"]) == len(self._matrices(model, self.second))
        )
        return param_groups

    def _prepare(self, model: torch.nn.Module) -> None:
        """Set the constants of the run from the initial network."""
        self.sets = self.reduction.sets
        self.first = [s for s in self.sets if s.projection == "P1"] or list(self.sets)
        self.second = [s for s in self.sets if s.projection == "P2" and s not in self.first]
        self.partners = self.reduction.partners() if self.search.same_ratio else []
        device = next(model.parameters()).device
        counts = torch.tensor([s.count for s in self.sets], device=device)
        self.counts = counts.tolist()
        self.set_index = torch.arange(len(self.sets), device=device).repeat_interleave(counts)
        with torch.no_grad():
            means = [float(groups.norms(model, s).mean()) for s in self.sets]
        self.balance = means if self.search.layer_balancing else [1.0] * len(means)

    @staticmethod
    def _matrices(model: torch.nn.Module, sets: list) -> list[torch.nn.Parameter]:
        """The weights of the sets' 1×1 convolutions, each once, matched by identity."""
        weights: dict[int, torch.nn.Parameter] = {}
        for s in sets:
            weights.update({id(w): w for w in groups.weights(model, s) if w.dim() == 4 and w.shape[2:] == (1, 1)})
        return list(weights.values())

    def penalty(self, model: torch.nn.Module, step: int) -> tuple[torch.Tensor | None, dict]:
        """The groups' penalty: added to the loss with --sparsify sgd, else only recorded."""
        search = self.search
        active = step >= search.prox_start
        loss = None
        if search.sparsify == "sgd":
            penalties = self._penalties(model)
            self.penalties = {name: float(value.detach()) for name, value in penalties.items()}
            self.strength = self._annealed()
            loss = self.strength * sum(penalties.values()) if active else None
        elif not self.penalties:
            with torch.no_grad():
                self.penalties = {name: float(value) for name, value in self._penalties(model).items()}
        ratio = {} if self.gradient_ratio is None else {"gradient_ratio": self.gradient_ratio}
        return loss, {**self.penalties, "lambda": self._annealed() if active else 0.0, **ratio}

    def _penalties(self, model: torch.nn.Module, norms: dict | None = None) -> dict[str, torch.Tensor]:
        reduce = self.reduction.plan.reduction
        penalties = {}
        for name, sets in (("loss_p1", self.first), ("loss_p2", self.second)):
            if sets:
                values = [groups.norms(model, s) if norms is None else norms[s.name] for s in sets]
                penalties[name] = proximal.group_loss(values, reduce, self.search.q)
        return penalties

    def _annealed(self) -> float:
        search, watched = self.search, self.penalties.get("loss_p1", math.inf)
        return proximal.annealed(search.sparse, search.anneal, tuple(search.anneal_at), watched)

    def before_update(self, model: torch.nn.Module, groups_: list[dict]) -> None:
        """Store the matrices' scheduled learning rate for the proximal step; adjust rates by the gradients' ratio."""
        self.rate = groups_[-1]["lr"]
        if not self.adjusts:
            return
        with torch.no_grad():
            sums = [sum(groups.gradient_norms(model, s).sum() for s in sets) for sets in (self.first, self.second)]
            ratio = float(sums[0] / sums[1]) if float(sums[1]) else math.nan
        if math.isfinite(ratio) and ratio > 0:
            self.gradient_ratio = proximal.running_ratio(self.gradient_ratio, ratio)
        if self.gradient_ratio is not None:
            rates = [group["lr"] for group in groups_]
            adjusted = proximal.adjusted_rates(rates, self.gradient_ratio, self.search.lr_adjust)
            for group, value in zip(groups_, adjusted, strict=True):
                group["lr"] = value

    @torch.no_grad()
    def after_step(self, model: torch.nn.Module) -> None:
        """The proximal step, on all groups at once."""
        self.steps_done += 1
        search = self.search
        due = self.steps_done > search.prox_start and self.steps_done % search.prox_freq == 0
        if search.sparsify != "pg" or not due:
            return
        norms = {s.name: groups.norms(model, s) for s in self.sets}
        joined = torch.cat(list(norms.values()))
        self.penalties = {name: float(value) for name, value in self._penalties(model, norms).items()}
        self.strength = self._annealed()
        balance = torch.tensor(self.balance, device=joined.device, dtype=joined.dtype)
        rho = self.strength * self.rate * balance[self.set_index]
        shrunk = proximal.factors(self.operator, joined, rho, self.set_index).split(self.counts)
        for s, by in zip(self.sets, shrunk, strict=True):
            groups.scale_(model, s, by)

    def evaluate(self, model: torch.nn.Module, task, arithmetic, config: RunConfig) -> dict:
        """The task's metrics and the cost ratio at the running threshold; ends the run when the target is reached."""
        metrics = super().evaluate(model, task, arithmetic, config)
        kept = kept_sets(self.reduction.norms(model), config.family.thres, config.family.remain, self.partners)
        self.ratio = self.reduction.ratio(kept, self._by(), config.family.merge)
        self.shares = {name: float(k.mean()) for name, k in kept.items()}
        started = self.steps_done > config.family.prox_start
        self.finished = started and self.ratio - config.family.target <= config.family.stop_limit
        return {**metrics, "ratio": self.ratio}

    def _by(self) -> str:
        # Pruning measures time; during training multiply-adds are used instead.
        return "params" if self.search.by == "params" else "multiply-adds"

    def metrics(self, model: torch.nn.Module) -> dict:
        """The cost ratio at the running threshold, of the last evaluation."""
        return {} if math.isnan(self.ratio) else {"ratio": self.ratio}

    def history(self, model: torch.nn.Module) -> dict:
        """Keep ratio of each set at the running threshold, of the last evaluation."""
        return {"kept": {name: round(share, 4) for name, share in self.shares.items()}} if self.shares else {}

    def state(self) -> dict:
        """The state that steps depend on besides the weights."""
        return {
            "balance": self.balance,
            "gradient_ratio": self.gradient_ratio,
            "steps_done": self.steps_done,
            "penalties": self.penalties,
            "finished": self.finished,
            "ratio": self.ratio,
            "shares": self.shares,
        }

    def restore(self, state: dict) -> None:
        """Restore a state that :meth:`state` returned.

        Raises:
            ValueError: an entry of another type.
        """
        for name, current in self.state().items():
            if name in state and not _alike(name, state[name], current):
                raise ValueError(f"{name} cannot be {state[name]!r:.40}")
        vars(self).update({name: state[name] for name in self.state() if name in state})


def _alike(name: str, value: object, current: object) -> bool:
    """Whether a restored value has the type of the current one."""
    numbers = lambda values: all(isinstance(entry, int | float) for entry in values)  # noqa: E731
    if isinstance(current, dict):
        return isinstance(value, dict) and numbers(value.values())
    if isinstance(current, list):
        return isinstance(value, list) and numbers(value)
    if isinstance(current, bool | int):
        return type(value) is type(current)
    return isinstance(value, int | float) or (value is None and name == "gradient_ratio")


@dataclass(frozen=True, kw_only=True)
class BuiltHinged(Built):
    """A network with its pairs, and its group structure."""

    reduction: Reduction


class GroupSearchFamily(TrainingFamily[BuiltHinged]):
    """Proximal gradient on groups of weights."""

    verb = "search"
    section = GroupSearchSection

    def build(self, context: Context) -> BuiltHinged:
        """The network with its pairs: from its checkpoint's configuration, from plain weights, or from random ones."""
        config, task, source = context.config, context.task, context.config.network.pretrained_model
        space = spaces.get(config.network.space)
        seed_all(config.run.seed)
        changes = {}
        if context.state is not None:
            recipe = context.state["network"]
            hinged = space.structure(recipe)
        else:
            state = load_weights(source) if source else None
            if state is not None:
                changes = space.settled(config, context.given, state, source)
                config = config.replace(**changes)
            shape = task.input_shape or (1, 3, config.data.crop_size, config.data.crop_size)
            recipe = space.config(config, shape[1:])
            plain = space.plain(recipe)
            if state is not None:
                space.load_weights_into(plain, state, source)
                context.say(f"starting from {source} ({recipe['arch']})")
            hinged = space.hinged(plain, recipe, config.run.seed)
            records.keep_start_norms(context, hinged)
        if config.family.channels_last:
            hinged.network.to(memory_format=torch.channels_last)
        return BuiltHinged(
            model=hinged.network,
            extra={"network": recipe},
            changes=changes,
            notes={"family": "group_sparsity"},
            reduction=hinged.reduction,
        )

    def method(self, context: Context, built: BuiltHinged) -> GroupSearch:
        """SGD and proximal steps on the network's groups."""
        return GroupSearch(context.config, built.reduction)

    def finish(self, context: Context, built: BuiltHinged, result: dict) -> int:
        """Draw and record the groups above the running threshold and their cost."""
        config, reduction = context.config, built.reduction
        partners = reduction.partners() if config.family.same_ratio else ()
        kept = kept_sets(reduction.norms(built.model), config.family.thres, config.family.remain, partners)
        records.conclude_search(context, Hinged(built.model, reduction), kept)
        ratio = result.get("ratio", math.nan)
        reached = ratio - config.family.target <= config.family.stop_limit
        missed = "" if reached else ": --target not reached, a larger --sparse or a longer run would come nearer"
        line = (
            f"searched: {context.metric_text(result)}; at threshold {config.family.thres:g} "
            f"{100 * ratio:.1f} % of the multiply-adds would be left{missed}"
        )
        context.announce([line], then="prune")
        return 0


FAMILY = GroupSearchFamily()
