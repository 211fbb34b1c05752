"""Specialisation: learn fine-grained masks on trained networks, and compare the resulting forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from sparsemask import spaces, training_setup
from sparsemask.config import RunConfig, flag
from sparsemask.engine import data
from sparsemask.engine.randomness import seed_all
from sparsemask.families import Built, TrainingFamily
from sparsemask.files import write_json
from sparsemask.options import Parser, natural, rate
from sparsemask.retrain.masked_network import NETWORK, share
from sparsemask.retrain.specializing.forms import compare_forms
from sparsemask.retrain.specializing.start import newest_start, resolve_start
from sparsemask.spaces.backbones.truncation import as_saved
from sparsemask.spaces.protocols import Distilled
from sparsemask.spaces.sparse_conv import search_method
from sparsemask.spaces.sparse_conv.masked_network import MaskedNetwork
from sparsemask.spaces.sparse_conv.masking import set_threshold
from sparsemask.spaces.sparse_conv.records import conclude
from sparsemask.tasks import EvaluationContext, Task
from sparsemask.training_setup import Context
from sparsemask.weights import load_weights

_START = "what is specialised"
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
    rounds: int = flag(5, natural, help="timed calls of each form, 0: none (default: 5)", group=_START)
    compiled: bool = flag(False, help="time the dense form compiled, too (a minute)", group=_START)


@dataclass(frozen=True)
class Taught(Built):
    """A network with masks and what teaches it.

    Attributes:
        teacher: the dense network, frozen; None: the task's targets alone teach.
    """

    teacher: nn.Module | None = None


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
        teacher: the dense network, frozen, on the run's device.
    """

    def __init__(self, config: RunConfig, teacher: nn.Module):
        super().__init__(config)
        self.teacher, self.truth = teacher, config.family.truth

    def loss(self, model: nn.Module, task: Task, images, output, target) -> torch.Tensor:
        """The task's distance to the dense network's output, and by weight to the target."""
        own = super().loss(model, task, images, output, target)
        with torch.no_grad():
            wanted = self.teacher(images)
        loss = task.loss(output, wanted)
        return loss + self.truth * own if self.truth else loss

    @torch.no_grad()
    def after_step(self, model: nn.Module) -> None:
        """While masks are fixed, follow the budget: the features that mask branches read move, and masks with them."""
        super().after_step(model)
        keep = self.config.family.keep
        if keep is not None and self._fixed(self.step) and isinstance(model, MaskedNetwork):
            for logits in model.budget_logits():
                logits.add_(_FOLLOW * (keep - self.kept))


class Specialization(TrainingFamily[Taught]):
    """Specialisation for all spaces of fine-grained masks, starting from dense weights."""

    verb = "specialize"

    def add_options(self, parser: Parser) -> None:
        """Flags of the masks' search, with a budget, and of the initial network."""
        search_method.add_section(parser, SpecializationSection, keep=0.5)

    def default_flags(self, given: dict) -> dict:
        """Default to the newest retrained network."""
        return newest_start(given)

    def resolve(self, config: RunConfig, given: Mapping) -> RunConfig:
        """Resolve the network that is specialised."""
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
            if isinstance(space, Distilled) and config.family.keep is not None:
                samples = [
                    context.task.train_data[number] for number in range(min(_SAMPLES, len(context.task.train_data)))
                ]
                space.start_masks(model, data.collate(context.task.train_data, samples)[0], config.family.keep)
        set_threshold(model, config.family.thres)
        teacher = None
        if isinstance(space, Distilled):
            where = context.arithmetic
            teacher = space.teacher(config.family.ft_model).to(where.device, where.parameters)
        return Taught(model, notes={"family": "sparse_conv"}, teacher=teacher)

    def method(self, context: Context, built: Taught) -> search_method.SparseConvSearch:
        """The search's method, with the dense network as teacher where there is one."""
        if built.teacher is not None:
            return Distillation(context.config, built.teacher)
        return search_method.SparseConvSearch(context.config)

    def finish(self, context: Context, built: Taught, result: dict) -> int:
        """Write network and mask file, print the table of forms; 1 if forms differ that must be equal."""
        config, run, model = context.config, context.run, built.model
        measured = conclude(context, model, run.folder / NETWORK)
        masks = share(context, model, measured, config.family.thres)
        text, rows, wrong = compare_forms(context, model)
        write_json(run.folder / "forms.json", rows)
        run.note(forms=rows, **({"wrong": wrong, "milliseconds": None, "milliseconds_dense": None} if wrong else {}))
        kept = masks.mean_kept
        missed = search_method.missed(kept, config.family.keep) if config.family.keep is not None else ""
        subject = "the multiply-adds" if model.kept_weights else "what has masks"
        lines = [text, f"kept {kept:.3f} of {subject} (budget {config.family.keep:g}{missed})"]
        lines += [taught_line(context, built.teacher, rows)] if built.teacher is not None else []
        lines += measured.get("plan", [])
        context.announce(lines, [NETWORK, "mask.npz", "forms.json"], then=None if wrong else "eval")
        if wrong:
            training_setup.warn(
                f"error: {'; '.join(wrong)}: the kernels of this machine are not to be trusted with this network"
            )
            return 1
        return 0


FAMILY = Specialization()
