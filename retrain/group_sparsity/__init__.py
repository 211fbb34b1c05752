"""Retraining of networks with pruned groups by distillation, and evaluation compared with the plain network.

Hinge (Li et al., CVPR 2020, arXiv 2003.08935), section 3.5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sparsemask import runs, spaces, tasks, training_setup
from sparsemask.command_lines import spoken
from sparsemask.config import RunConfig, Section, flag
from sparsemask.engine import checkpoint, distributed
from sparsemask.engine.randomness import seed_all
from sparsemask.errors import UseError, say
from sparsemask.families import Built, Restored, RetrainingFamily
from sparsemask.masks import groups as files
from sparsemask.options import Parser, adopted, natural, positive
from sparsemask.retrain.group_sparsity.evaluation import costs_text, measured, slower_note, write_predictions
from sparsemask.retrain.group_sparsity.teacher import FineTuning, build_teacher, choose_teacher
from sparsemask.retrain.trained import read_source, ready, record_evaluation, shortfall
from sparsemask.spaces.group_sparsity import records
from sparsemask.spaces.group_sparsity.options import memory_flag
from sparsemask.spaces.pretrained import distill_flag, same_teacher, teacher_flag, temperature_flag
from sparsemask.tables import format_count
from sparsemask.training_setup import Context
from sparsemask.weights import bare_state, load_strictly, read_checkpoint

NETWORK = "network.safetensors"


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupRetrainingSection(Section):
    """Initial weights and teacher of the small network."""

    title = "groups of weights"
    mask_path: str | None = flag(help="mask file (.npz), as prune/prune.py writes it")
    search_checkpoint: str | None = flag(help="the checkpoint the mask was made from (default: where it lay then)")
    ft_model: str | None = flag(help="go on training a network.safetensors of another retraining")
    teacher: str = teacher_flag(
        "auto",
        "weights of a plain network to learn from, 'search' (the searched network, whole) or 'none'; auto: what "
        "the search started from, else 'search'",
    )
    distill: float = distill_flag(None)
    temperature: float = temperature_flag(None)
    batch: int = flag(1, positive, help="inputs at once when time is measured (default: 1)")
    channels_last: bool = memory_flag()


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupEvaluationSection(Section):
    """Timing of the small network and the plain one."""

    title = "groups of weights"
    mask_path: str | None = flag(help="checked against the weights' own")
    rounds: int = flag(9, natural, help="timed calls of each network, 0: none (default: 9)")
    batch: Sequence[int] = flag([1], positive, nargs="+", help="inputs at once when time is measured (default: 1)")
    compiled: bool = flag(False, help="time compiled networks")


@dataclass(frozen=True, kw_only=True)
class BuiltPruned(Built):
    """A small network and its mask."""

    mask: files.GroupMask


@dataclass(frozen=True, kw_only=True)
class RestoredPruned(Restored):
    """A small network with its mask; None for plain networks and published files."""

    mask: files.GroupMask | None


def _start(config: RunConfig) -> tuple[files.GroupMask, Path]:
    """The mask and the file that holds the weights."""
    if config.family.ft_model:
        state = read_checkpoint(config.family.ft_model)
        mask = spaces.get(config.network.space).load(config.family.ft_model).mask
        if mask is None:
            raise UseError(
                f"--ft_model {config.family.ft_model}: no pruned network of this toolkit ({len(state)} tensors)"
            )
        return mask, Path(config.family.ft_model)
    if config.family.mask_path is None:
        raise UseError(f"--mask_path is missing: a mask file ({spoken('prune')} writes one)")
    mask = files.load_mask(config.family.mask_path)
    path = config.family.search_checkpoint or mask.checkpoint
    if path is None or not Path(path).exists():
        raise UseError(f"the checkpoint of {config.family.mask_path} is gone ({path}): --search_checkpoint FILE")
    mask.check_weights(path, config.family.mask_path)
    return mask, Path(path)


def _same_mask(path: str, mask: files.GroupMask | None, what: object) -> None:
    expected = files.load_mask(path)
    alike = mask is not None and expected.merged == mask.merged and expected.kept.keys() == mask.kept.keys()
    if not alike or any((expected.kept[k] != mask.kept[k]).any() for k in expected.kept):
        raise UseError(f"--mask_path {path}: {what} is not a network of this mask")


def _network_of(config: RunConfig, given: Mapping, mask: files.GroupMask, source: object) -> dict[str, Any]:
    """The network's hyperparameters from its mask, by flag; UseError if the command line contradicts them."""
    known = {name: mask.config.get(name) for name in ("arch", "variant", "init", "n_class")}
    adopted(config, given, known, source)
    return {**known, "arch_options": [f"{k}={v}" for k, v in mask.config["arch_options"].items()] or None}


class GroupRetraining(RetrainingFamily[BuiltPruned, RestoredPruned]):
    """Small networks of the kept groups."""

    verb = "retrain"
    section, eval_section = GroupRetrainingSection, GroupEvaluationSection

    def resolve(self, config: RunConfig, given: Mapping) -> RunConfig:
        """Check the mask, and that the weights belong to it."""
        _start(config)
        return config

    def build(self, context: Context) -> BuiltPruned:
        """Build the small network; its checkpoints hold its mask and teacher."""
        config, task = context.config, context.task
        space = spaces.get(config.network.space)
        seed_all(config.run.seed)
        changes = {}
        if context.state is not None:
            saved = context.state["mask"]
            mask = files.GroupMask.from_recipe(saved, context.run.last)
            model = space.network(mask, state=context.state["model"])
            teacher = same_teacher(context.state["teacher"])
        else:
            mask, path = _start(config)
            changes = _network_of(config, context.given, mask, config.family.mask_path or path)
            if config.family.ft_model:
                model = space.load(path).network
                state = {}
            else:
                state = read_checkpoint(path)
                hinged = space.structure(mask.config)
                load_strictly(hinged.network, bare_state(state, path), path)
                model = space.compressed(hinged, mask).network
                changes["mask_path"] = str(Path(config.family.mask_path).resolve())
                changes["search_checkpoint"] = str(path.resolve())
            teacher = choose_teacher(config, state, path)
            ratio = mask.figures.get("multiply_adds_share")
            cost = "" if ratio is None else f", {ratio:.1%} of the multiply-adds"
            context.say(f"weights of {path}{cost}; teacher: {teacher['what'] or 'none'}")
            saved = mask.recipe()
        if task.n_output != mask.config["n_class"]:
            raise UseError(
                f"{task.measured_on()} has {task.n_output} classes, the mask's network {mask.config['n_class']}"
            )
        model.train()
        if config.family.channels_last:
            model.to(memory_format=torch.channels_last)
        return BuiltPruned(
            model=model,
            extra={"mask": saved, "teacher": teacher},
            changes=changes,
            notes={"family": "group_sparsity"},
            mask=mask,
            teacher=build_teacher(config, teacher, mask),
        )

    def method(self, context: Context, built: BuiltPruned) -> FineTuning:
        """Training of the whole network at one rate."""
        return FineTuning()

    def finish(self, context: Context, built: BuiltPruned, result: dict) -> int:
        """Write the network as safetensors, measure and draw it."""
        config, run, model, mask = context.config, context.run, built.model, built.mask
        space = spaces.get(config.network.space)
        reduction = space.structure(mask.config).reduction
        space.save(run.folder / NETWORK, model, mask)
        context.describe(run.folder / NETWORK)
        entries = {
            **records.entries(reduction, mask.kept, mask.merged),
            **records.times(model, mask.config, config.family.batch, context.arithmetic.device),
        }
        run.note(network=NETWORK, threshold=mask.threshold, **entries)
        records.draw_kept_groups(run, mask.kept)
        context.draw_training(model)
        line = (
            f"retrained: {context.metric_text(result)}; multiply-adds "
            f"{format_count(entries['multiply_adds'])} of {format_count(entries['multiply_adds_dense'])}, parameters "
            f"{format_count(entries['parameters'])} of {format_count(entries['parameters_dense'])}, "
            f"{entries['milliseconds']:.2f} ms (plain {entries['milliseconds_dense']:.2f}, batch {config.family.batch})"
        )
        context.announce([line, slower_note([entries]), shortfall(context, result)], [NETWORK], then="eval")
        return 0

    def restore(self, parser: Parser, given: dict, run: runs.Run | None) -> RestoredPruned:
        """Load the network of a run, or of any weights file, public and plain ones included."""
        source = read_source(parser, given, run, ("eval_limit", "config", "batch", "mask_path"))
        config = source.config
        loaded = spaces.get(given["space"]).load(source.path)
        if config.family.mask_path:
            _same_mask(config.family.mask_path, loaded.mask, source.path)
        where = training_setup.device(config)
        model = ready(loaded.network, where)
        return RestoredPruned(config=config, model=model, arithmetic=where, run=run, mask=loaded.mask)

    def evaluate(self, restored: RestoredPruned) -> int:
        """Print the task's report, and the network's costs compared with the plain one's."""
        config, model, where = restored.config, restored.model, restored.arithmetic
        task = tasks.get(config.data.task, config)
        predictions: dict[int, torch.Tensor] = {}
        keep = predictions.__setitem__ if config.evaluation.out else None
        context = tasks.EvaluationContext.from_config(where, config)
        scores = task.evaluate(
            model, context, limit=config.evaluation.eval_limit, flips=config.evaluation.flips, on_prediction=keep
        )
        if distributed.rank():
            return 0
        say(task.report(scores))
        rows = measured(restored, task)
        say(costs_text(rows, config.family))
        if note := slower_note(rows):
            say(note)
        if config.evaluation.out:
            say(f"predictions in {write_predictions(task, predictions, config.evaluation.out)}")
        entries = {"eval": {**task.record(scores), "pictures": scores.count}, **rows[0]}
        record_evaluation(restored, task, scores, entries)
        return 0

    def load_run(self, run: runs.Run) -> torch.nn.Module:
        """Load the network of a run, also of a search."""
        return spaces.get(checkpoint.load(run.last)["space"]).load(run.last).network


FAMILY = GroupRetraining()
