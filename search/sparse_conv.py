"""Search for fine-grained masks: a network and its masks are trained together from the start."""

from __future__ import annotations

from dataclasses import dataclass

from sparsemask import spaces
from sparsemask.engine.randomness import seed_all
from sparsemask.families import TrainingFamily
from sparsemask.options import Parser
from sparsemask.spaces.pretrained import distill_flag, open_teacher, teacher_flag, temperature_flag
from sparsemask.spaces.sparse_conv.mask_costs import open_budget
from sparsemask.spaces.sparse_conv.masking import set_threshold
from sparsemask.spaces.sparse_conv.records import conclude
from sparsemask.spaces.sparse_conv.search_method import (
    Masked,
    SparseConvSearch,
    SparseMaskSection,
    add_section,
    missed,
)
from sparsemask.training_setup import Context
from sparsemask.weights import load_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseConvSearchSection(SparseMaskSection):
    """How fine-grained masks are searched, and from whom the network learns beside the labels."""

    teacher: str = teacher_flag()
    distill: float = distill_flag()
    temperature: float = temperature_flag()


class SparseConvSearchFamily(TrainingFamily[Masked]):
    """SMSR, SMPointSeg, SMStereo and specialised networks; see :mod:`sparsemask.spaces.sparse_conv.search_method`."""

    verb = "search"

    def add_options(self, parser: Parser) -> None:
        """Flags of learning fine-grained masks."""
        add_section(parser, SparseConvSearchSection)

    def build(self, context: Context) -> Masked:
        """The network with soft masks: from its checkpoint's configuration, from weights, or from random ones."""
        config = context.config
        seed_all(config.run.seed)
        space = spaces.get(config.network.space)
        model = space.supernet(config)
        if context.state is None and config.network.pretrained_model:
            space.load_weights_into(
                model, load_weights(config.network.pretrained_model), config.network.pretrained_model
            )
            context.say(f"starting from {config.network.pretrained_model}")
        set_threshold(model, config.family.thres)
        budget = open_budget(context, model)
        teacher, entries = open_teacher(context)
        return Masked(model, entries, notes={"family": "sparse_conv"}, teacher=teacher, budget=budget)

    def method(self, context: Context, built: Masked) -> SparseConvSearch:
        """Network and masks together."""
        return SparseConvSearch(context.config, built.budget)

    def finish(self, context: Context, built: Masked, result: dict) -> int:
        """Measure and draw the network; returns 1 if skipping and multiplying by masks give different outputs."""
        keep = context.config.family.keep
        noted = conclude(context, built.model)
        kept = noted["kept_fraction"]
        budget = "" if keep is None else f" (budget {keep:g}{missed(kept, keep)})"
        lines = [f"searched: {context.metric_text(result)}; kept fraction {kept:.3f}{budget}"]
        if built.budget is not None:
            lines.append(built.budget.met(context, built.model))
        context.announce(lines, then="prune")
        return int(noted["milliseconds"] is None)


FAMILY = SparseConvSearchFamily()
