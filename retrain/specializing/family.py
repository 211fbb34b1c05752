"""Specialisation: learn fine-grained masks on trained networks, and compare the resulting forms."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn

from sparsemask import spaces
from sparsemask.config import RunConfig, flag
from sparsemask.engine import data, distributed
from sparsemask.engine.randomness import seed_all
from sparsemask.errors import UseError
from sparsemask.families import TrainingFamily
from sparsemask.files import write_json
from sparsemask.options import Parser, natural, part, rate
from sparsemask.retrain.masked_network import NETWORK, share
from sparsemask.retrain.specializing.forms import compare_forms
from sparsemask.retrain.specializing.start import newest_start, resolve_start
from sparsemask.spaces.backbones import as_saved
from sparsemask.spaces.pretrained import NONE, distill_flag, open_teacher, teacher_flag, temperature_flag
from sparsemask.spaces.protocols import Distilled
from sparsemask.spaces.sparse_conv import search_method
from sparsemask.spaces.sparse_conv.mask_costs import (
    PAYING,
    MaskBudget,
    leave_paying,
    masks_flag,
    open_budget,
    require_modules,
)
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork
from sparsemask.spaces.sparse_conv.masking import set_threshold
from sparsemask.spaces.sparse_conv.planning import open_modules
from sparsemask.spaces.sparse_conv.records import conclude
from sparsemask.spaces.sparsified import SparsifiedNetwork
from sparsemask.spaces.sparsified.anchor import MaskAnchor
from sparsemask.tasks import EvaluationContext, Task
from sparsemask.training_setup import Context
from sparsemask.weights import load_weights

_START = "what is specialised"
_KEEP = 0.5  # without any budget
_FOLLOW = 0.1  # of the kept fraction's distance to the budget, added to mask logits at every step
_SAMPLES = 64  # training inputs that masks are started on


@dataclass(frozen=True, kw_only=True, slots=True)
class SpecializationSection(search_method.SparseMaskSection):
    """Options of the masks' training, the initial network and the comparison of forms."""

    run: str | None = flag(help="a retrained connectivity run (default: the newest)", group=_START)
    mask_path: str | None = flag(help="its connectivity mask, to be sure, or that of --ft_model", group=_START)
    ft_model: str | None = flag(help="weights of the dense network instead of a run", group=_START)
    truth: float = flag(
        0.0, rate, group=_START,
        help="--space sr: weight of the pictures themselves beside the dense network's output (default: 0)",
    )  # fmt: skip
    settle: float = flag(
        0.0,
        part,
        help="share of the run, its last, in which masks are fixed, at --keep, and the weights adapt; 1, for "
        "--space sr: masks stay where they are started (default: 0)",
    )
    teacher: str = teacher_flag()
    distill: float = distill_flag()
    temperature: float = temperature_flag()
    masks: str = masks_flag("when masks are fixed (--settle)")
    rounds: int = flag(5, natural, help="timed calls of each form, 0: none (default: 5)", group=_START)
    compiled: bool = flag(False, help="time the dense form compiled, too (a minute)", group=_START)


@dataclass(frozen=True)
class Taught(search_method.Masked):
    """A network with masks and what it came from.

    Attributes:
        dense: the dense network, frozen, whose output masks must keep near; None: the task's targets teach.
        anchor: holds masks where they were started (--settle 1).
    """

    dense: nn.Module | None = None
    anchor: MaskAnchor | None = None


def taught_line(context: Context, teacher: nn.Module, rows: list[dict]) -> str:
    """What masks cost beside the dense network that taught, on the same validation items."""
    task, name = context.task, context.task.primary
    evaluation = EvaluationContext.from_config(context.arithmetic, context.config)
    scores = task.evaluate(teacher, evaluation, limit=context.config.training.eval_limit, quick=True)
    before, after = task.metrics(scores)[name], next(row[name] for row in rows if row["form"] == "sparse")
    context.run.note(teacher={name: before})
    return f"the dense network that taught has {name} {before:.4f}, with masks {after:.4f} ({after - before:+.4f})"


class Distillation(search_method.SparseConvSearch):
    """Masks are learnt while the output stays near the dense network's, so that inputs need no targets.

    Args:
        config: of the run.
        dense: the dense network, frozen, on the run's device.
        budget: in milliseconds, in the place of --keep.
        leave: as of the search's method.
        anchor: holds masks where they were started, on the run's device.
    """

    def __init__(
        self,
        config: RunConfig,
        dense: nn.Module,
        budget: MaskBudget | None = None,
        leave: Callable[[MaskedNetwork], None] | None = None,
        anchor: MaskAnchor | None = None,
    ):
        super().__init__(config, budget, leave)
        self.dense, self.truth, self.anchor = dense, config.family.truth, anchor

    def groups(self, model: nn.Module, config: RunConfig) -> list[dict]:
        """The search's; mask branches that are anchored have their own."""
        groups = super().groups(model, config)
        if self.anchor is None:
            return groups
        branches = self.anchor.groups(cast(SparsifiedNetwork, model), config)
        own = {id(parameter) for group in branches for parameter in group["params"]}
        rest = [{**group, "params": [p for p in group["params"] if id(p) not in own]} for group in groups]
        return [*rest, *branches]

    def before_step(self, model: nn.Module, step: int) -> None:
        """The search's; branches that are anchored are trained although their masks are hard."""
        super().before_step(model, step)
        if self.anchor is not None:
            self.anchor.thaw(cast(SparsifiedNetwork, model))

    def loss(self, model: nn.Module, task: Task, images, output, target) -> torch.Tensor:
        """The task's distance to the dense network's output, by weight to the target, and of masks to the anchor's."""
        own = super().loss(model, task, images, output, target)
        if self.anchor is None:
            with torch.no_grad():
                wanted = self.dense(images)
            loss = task.teacher_loss(output, wanted, target, 1.0)
        else:
            wanted, masks = self.anchor(images)
            loss = task.teacher_loss(output, wanted, target, 1.0)
            loss = loss + task.count(target) * self.anchor.loss(cast(SparsifiedNetwork, model), masks)
        return loss + self.truth * own if self.truth else loss

    def before_update(self, model: nn.Module, groups: list[dict]) -> None:
        """Mask branches' first layers in proportion to the features that they read."""
        super().before_update(model, groups)
        if self.anchor is not None:
            self.anchor.scale_rates(groups)

    def state(self) -> dict:
        """The masks that branches are held at."""
        return super().state() if self.anchor is None else {**super().state(), "anchor": self.anchor.state()}

    def restore(self, state: dict) -> None:
        """Go on from what `state` once returned."""
        super().restore(state)
        if self.anchor is not None:
            self.anchor.restore(state["anchor"])

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """While masks are fixed, follow the budget: the features that mask branches read move, and masks with them."""
        super().after_step(model)
        if self.step == 0 and self._fixed(0):
            self.leave_modules(model)
        keep = self.keep
        if keep is not None and self._fixed(self.step) and isinstance(model, MaskedNetwork):
            shift = _FOLLOW * (keep - self.kept)
            for logits in model.budget_logits():
                logits.add_(shift)
            if self.anchor is not None:
                self.anchor.shift(shift)


class Specialization(TrainingFamily[Taught]):
    """Specialisation for all spaces of fine-grained masks, starting from dense weights."""

    verb = "specialize"

    def add_options(self, parser: Parser) -> None:
        """Flags of the masks' search, with a budget, and of the initial network."""
        search_method.add_section(parser, SpecializationSection)

    def default_flags(self, given: dict) -> dict:
        """Default to the newest retrained network."""
        return newest_start(given)

    def resolve(self, config: RunConfig, given: Mapping) -> RunConfig:
        """Resolve the network that is specialised, and the budget: without any, half is kept."""
        if config.family.keep is None and config.family.budget_ms is None:
            config = config.replace(keep=_KEEP)
        if config.family.teacher != NONE and isinstance(spaces.get(config.network.space), Distilled):
            raise UseError(
                f"--teacher {config.family.teacher}: networks of --space {config.network.space} learn from their dense "
                "network; leave it out"
            )
        if config.family.settle == 1 and not isinstance(spaces.get(config.network.space), Distilled):
            raise UseError(
                f"--settle 1: masks of --space {config.network.space} must be learnt before they are fixed; less than 1"
            )
        return resolve_start(config, given)

    def build(self, context: Context) -> Taught:
        """Build the network with soft masks and the dense network's weights, or for a checkpoint's."""
        config = context.config
        seed_all(config.run.seed)
        space = spaces.get(config.network.space)
        if context.state is not None:
            model = as_saved(space.supernet, config, context.state["model"])
        else:
            model = space.supernet(config)
            space.load_weights_into(model, load_weights(config.family.ft_model), config.family.ft_model)
            context.say(f"starting from {config.family.ft_model}")
        set_threshold(model, config.family.thres)
        if config.family.masks == PAYING:
            require_modules(model, config.network.space, "--masks paying", "leave it out")
        budget = open_budget(context, model)
        if isinstance(space, Distilled) and context.state is None:
            source = context.task.train_data
            samples = [source[number] for number in range(min(_SAMPLES, len(source)))]
            keep, measure = (config.family.keep, None) if budget is None else (budget.keep, budget.kept)
            space.start_masks(model, data.collate(source, samples)[0], keep, measure)
        dense, anchor = None, None
        if isinstance(space, Distilled):
            where, start = context.arithmetic, model
            dense = space.teacher(config.family.ft_model).to(where.device, where.parameters)
            if config.family.settle == 1:
                if context.state is not None:  # where it began: the checkpoint has the masks, the file the weights
                    start = space.supernet(config)
                    space.load_weights_into(start, load_weights(config.family.ft_model), config.family.ft_model)
                    set_threshold(start, config.family.thres)
                anchor = space.anchor(start).to(where.device, where.parameters)
        teacher, entries = open_teacher(context)
        notes = {"family": "sparse_conv"}
        return Taught(model, entries, notes=notes, teacher=teacher, budget=budget, dense=dense, anchor=anchor)

    def method(self, context: Context, built: Taught) -> search_method.SparseConvSearch:
        """The search's method, near the dense network where a space has it so."""
        leave = functools.partial(leave_paying, context) if context.config.family.masks == PAYING else None
        if built.dense is not None:
            return Distillation(context.config, built.dense, built.budget, leave, built.anchor)
        return search_method.SparseConvSearch(context.config, built.budget, leave)

    def finish(self, context: Context, built: Taught, result: dict) -> int:
        """Write network and mask file, print the table of forms; 1 if forms differ that must be equal."""
        config, run, model = context.config, context.run, built.model
        measured = conclude(context, model, run.folder / NETWORK)
        masks = share(context, model, measured, config.family.thres)
        text, rows, wrong = compare_forms(context, model)
        write_json(run.folder / "forms.json", rows)
        run.note(forms=rows, **({"wrong": wrong, "milliseconds": None, "milliseconds_dense": None} if wrong else {}))
        kept, keep = masks.mean_kept, config.family.keep
        remark = "" if keep is None or open_modules(model) else search_method.missed(kept, keep)
        budget = "" if keep is None else f" (budget {keep:g}{remark})"
        subject = "the multiply-adds" if model.kept_weights else "what has masks"
        lines = [text, f"kept {kept:.3f} of {subject}{budget}"]
        if built.budget is not None:
            lines.append(built.budget.met(context, model))
        if built.dense is not None:
            lines.append(taught_line(context, built.dense, rows))
        lines += measured.get("plan", [])
        context.announce(lines, [NETWORK, "mask.npz", "forms.json"], then=None if wrong else "eval")
        if wrong:
            distributed.warn(
                f"error: {'; '.join(wrong)}: the kernels of this machine are not to be trusted with this network"
            )
            return 1
        return 0


FAMILY = Specialization()
