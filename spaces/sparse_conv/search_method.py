"""Training of fine-grained masks: Gumbel-softmax over keep and drop, and a loss on the kept fraction.

SMSR (Wang et al., CVPR 2021, arXiv 2006.09603), section 3; for points SMPointSeg (TPAMI 2022). Two losses on the kept
fraction η: the published λ·η, and with --keep κ a budget, λ·(η - κ)². With --budget_ms the budget is one of
milliseconds: η weighs every module by what its kept fraction takes on this machine, κ is what the milliseconds leave,
and modules whose masks would save nothing have none. Searching trains from random or dense weights, specialising from a
trained network.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from sparsemask import spaces
from sparsemask.config import RunConfig, Section, flag
from sparsemask.engine import Method, distributed
from sparsemask.engine.randomness import step_generator
from sparsemask.errors import UseError
from sparsemask.families import Built
from sparsemask.options import Parser, factor, fraction, natural, rate, share_or
from sparsemask.spaces.sparse_conv.budget_calibration import meet_budget
from sparsemask.spaces.sparse_conv.mask_costs import MaskBudget
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork
from sparsemask.spaces.sparse_conv.masking import blocks, hard_masks, mean_kept
from sparsemask.spaces.sparse_conv.records import evaluate_kept
from sparsemask.spaces.sparse_conv.schedules import published_epoch, sparse_weight, temperature
from sparsemask.sparse import set_mask_mode

NOISE = 4  # stream of randomness
# Schedules in epochs of the published run; a space may have others (`published`).
PUBLISHED = {"epochs": 1000, "sparse": 0.1, "sparse_epochs": 50, "tau_epochs": 500.0, "tau_end": 0.4}


def published(space: str) -> dict:
    """Return the published hyperparameters of a space: epochs of the run, weight of the loss and schedules."""
    return {**PUBLISHED, **spaces.get(space).published}


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseMaskSection(Section):
    """How fine-grained masks are learnt; defaults of schedules are the published run's (:func:`published`)."""

    title = "sparse mask search"
    alternatives = (("keep", "budget_ms"),)
    sparse: float = flag(PUBLISHED["sparse"], rate, help="factor λ of the kept fraction")
    keep: float | None = flag(
        None,
        fraction,
        help="kept fraction to end with: the loss is λ·(kept - keep)² (default: none, the published λ·kept)",
    )
    budget_ms: float | str | None = flag(
        None,
        share_or(factor),
        metavar="MS",
        help="instead: milliseconds of one input on this machine, as its masked modules are measured; 70%%: of the "
        "network without masks; modules whose masks would save nothing get none",
    )
    sparse_epochs: int = flag(PUBLISHED["sparse_epochs"], natural, help="λ rises linearly over so many epochs")
    sparse_start: int = flag(
        0, natural, help="epochs before that, in which only the task's loss moves the masks (default: 0)"
    )
    tau_epochs: float = flag(PUBLISHED["tau_epochs"], factor, help="epochs in which τ falls by 1")
    tau_end: float = flag(PUBLISHED["tau_end"], factor, help="where τ stops falling")
    constant_tau: bool = flag(False, help="τ stays 1, as in the public code, which never sets it")
    mask_lr_mult: float = flag(1.0, rate, help="factor on --lr for the channel masks (default: 1, as published)")
    settle: float = flag(
        0.0,
        fraction,
        help="share of the run, its last, in which masks are fixed, at --keep, and the weights adapt (default: 0)",
    )
    thres: float = flag(0.5, fraction, help="of the data masks' P(keep) (default: 0.5, argmax)")

    def check(self) -> None:
        """One budget at most."""
        if self.keep is not None and self.budget_ms is not None:
            raise UseError("--keep and --budget_ms: one budget at a time; leave one out")


def add_section(parser: Parser, section: type[SparseMaskSection] = SparseMaskSection, **defaults) -> None:
    """Add the flags of learning fine-grained masks, with the published schedules of the parser's space as defaults.

    Args:
        parser: changed in place.
        section: the section or a subclass with more flags.
        defaults: of flags, overriding the space's.
    """
    schedule = published(parser.get_default("space"))
    epochs = f"epochs of {schedule['epochs']}, whatever the run's own length"
    helps = {
        "sparse": f"factor λ of the kept fraction (default: {schedule['sparse']})",
        "sparse_epochs": f"λ rises linearly over so many {epochs} (default: {schedule['sparse_epochs']})",
        "tau_epochs": f"epochs in which τ falls by 1 (default: {schedule['tau_epochs']:g})",
        "tau_end": f"where τ stops falling (default: {schedule['tau_end']})",
    }
    parser.add_section(
        "family", section, defaults={**{name: schedule[name] for name in helps}, **defaults}, helps=helps
    )


@dataclass(frozen=True)
class Masked(Built):
    """A network whose masks are learnt.

    Attributes:
        budget: in milliseconds; None: --keep is the budget, or there is none.
    """

    budget: MaskBudget | None = None


class SparseConvSearch(Method):
    """Train a network and its masks together.

    Args:
        config: of the run.
        budget: in milliseconds, in the place of --keep.
        leave: changes the network in place when its masks are fixed (--settle), in one of several processes.
    """

    def __init__(
        self, config: RunConfig, budget: MaskBudget | None = None, leave: Callable[[MaskedNetwork], None] | None = None
    ):
        self.config, self.seed, self.budget, self.leave = config, config.run.seed, budget, leave
        self.keep = config.family.keep if budget is None else budget.keep
        self.epochs = published(config.network.space)["epochs"]
        self.kept = math.nan
        self.step, self.inputs = 0, None

    def groups(self, model: torch.nn.Module, config: RunConfig) -> list[dict]:
        """The network at --lr, the channel masks at --lr times --mask_lr_mult and without weight decay."""
        masks = [block.ch_mask for block in blocks(model).values()]
        left_out = {id(p) for p in masks}
        if self.budget is not None:
            frozen = self.budget.frozen(model)
            masks, left_out = [p for p in masks if id(p) not in frozen], left_out | frozen
        others = [p for p in model.parameters() if id(p) not in left_out and p.requires_grad]
        channels = {"name": "channel masks", "params": masks, "lr": config.training.lr * config.family.mask_lr_mult}
        return [{"name": "network", "params": others, "lr": config.training.lr}, {**channels, "weight_decay": 0.0}]

    def before_step(self, model: torch.nn.Module, step: int) -> None:
        """Set the temperature, whether masks are hard, and the generator that the masks' noise is drawn from.

        Hard in the last part of the run (--settle), and where statistics are taken for an evaluation (step -1).
        """
        self.step, model.tau = step, self._tau(step)
        set_mask_mode(model, "hard" if step < 0 or self._fixed(step) else "soft")
        # The masks' Gumbel noise is the library's own, from the global generator: a function of seed, step and process.
        stream = NOISE + distributed.rank() * 1000
        torch.manual_seed(int(step_generator(self.seed, max(step, 0), stream).initial_seed()))

    def penalty(self, model: torch.nn.Module, step: int) -> tuple[torch.Tensor | None, dict]:
        """λ·η of the soft masks, or λ·(η - κ)² with η of the hard masks, of this forward pass.

        None once masks are fixed (--settle).
        """
        config = self.config
        measure = self._measure
        kept, hard = measure(model), measure(model, hard=True)
        if self._fixed(step):
            self.kept = float(hard)
            same = {"loss_sparse": 0.0, "kept": self.kept, "kept_soft": self.kept}
            return None, {**same, "tau": model.tau, "lambda": 0.0}
        if self.keep is None:
            loss = kept
        else:  # the budget is for hard masks: their value, with the soft masks' gradient
            loss = (kept + (hard - kept).detach() - self.keep).square()
        weight = config.family.sparse * sparse_weight(
            self._epoch(step), config.family.sparse_epochs, config.family.sparse_start
        )
        self.kept = float(hard)
        metrics = {"loss_sparse": float(loss.detach()), "kept": self.kept, "kept_soft": float(kept.detach())}
        return weight * loss, {**metrics, "tau": model.tau, "lambda": weight}

    def loss(self, model: torch.nn.Module, task, images, output, target) -> torch.Tensor:
        """The task's."""
        self.inputs = images if self._fixes_next() else None
        return super().loss(model, task, images, output, target)

    def after_step(self, model: torch.nn.Module) -> None:
        """Before masks are fixed, meet the budget."""
        self.jumped = self._fixes_next()
        if self.jumped:
            assert self.keep is not None
            left = () if self.budget is None else self.budget.open_blocks(model)
            meet_budget(model, self.inputs, self.keep, self._measure, left)
            self.inputs = None
            self.leave_modules(model)

    def leave_modules(self, model: torch.nn.Module) -> None:
        """Change the network as masks are fixed, if that was asked for."""
        if self.leave is not None:
            assert isinstance(model, MaskedNetwork)
            self.leave(model)
            distributed.copy_from_first(model)

    def evaluate(self, model: torch.nn.Module, task, arithmetic, config: RunConfig) -> dict:
        """The task's metrics and the kept fraction of the hard masks, on the same inputs."""
        return evaluate_kept(model, task, arithmetic, config)

    def metrics(self, model: torch.nn.Module) -> dict:
        """The kept fraction of hard masks and the fraction of dense channels."""
        dense = [mask.mean() for mask in hard_masks(model).values()]
        return {"kept": self.kept, "dense_channels": float(sum(dense) / len(dense))}

    @property
    def _measure(self) -> Callable[..., torch.Tensor]:
        return mean_kept if self.budget is None else self.budget.kept

    def _epoch(self, step: int) -> int:
        return published_epoch(step, self.steps, self.epochs)

    def _fixed(self, step: int) -> bool:
        return self.config.family.settle > 0 and step >= self.steps * (1 - self.config.family.settle)

    def _fixes_next(self) -> bool:
        """Whether this step is the last in which masks are learnt."""
        return self.keep is not None and self._fixed(self.step + 1) and not self._fixed(self.step)

    def _tau(self, step: int) -> float:
        config = self.config
        return (
            1.0
            if config.family.constant_tau
            else temperature(self._epoch(max(step, 0)), config.family.tau_epochs, config.family.tau_end)
        )


def missed(kept: float, budget: float) -> str:
    """Remark on a budget that a finished run missed by more than 0.05; empty if it was met."""
    if abs(kept - budget) <= 0.05:
        return ""
    return ", missed: a longer run, a larger --sparse or --mask_lr_mult would come nearer"
